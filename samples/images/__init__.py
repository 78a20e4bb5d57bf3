"""Images with prompts and true answers: the questions used where no others are given."""
