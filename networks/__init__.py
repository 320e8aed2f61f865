"""Torch definitions of the published networks, under the key names of their checkpoints."""
