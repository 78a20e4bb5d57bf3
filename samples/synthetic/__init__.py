"""Writes checkpoints of any official size with random weights."""
