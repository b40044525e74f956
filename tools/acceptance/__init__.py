"""What tools/ascend_acceptance.py is made of."""
