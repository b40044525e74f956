"""Headrace's model: InceptionV4, its weights, its learning rate and its checkpoints."""
