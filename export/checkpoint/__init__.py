"""Reads a checkpoint: its config, and its tensors under one set of names, still on disk."""
