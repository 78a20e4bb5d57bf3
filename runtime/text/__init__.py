"""Prompts and answers as text: the tokenizer, the tasks of prompts, the parser of answers."""
