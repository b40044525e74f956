"""Why is my accelerator starving? (tools/profile_loader.py, headrace-profile)"""
