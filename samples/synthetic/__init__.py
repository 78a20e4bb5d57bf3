"""Checkpoints of any size with random weights."""
