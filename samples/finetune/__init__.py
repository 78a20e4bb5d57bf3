"""A LoRA for a new task, trained and shipped."""
