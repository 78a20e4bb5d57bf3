"""Images with prompts and the truth: what is asked where no questions are given."""
