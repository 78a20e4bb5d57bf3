"""Prompts and answers as text: the tokenizer, what a prompt asks for, what an answer holds."""
