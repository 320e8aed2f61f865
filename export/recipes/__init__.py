"""Recipes: how the networks of a system are found in the checkpoints people have, one family a file."""
