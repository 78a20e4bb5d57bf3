"""Trains a LoRA for a new task and ships it, merged and switchable."""
