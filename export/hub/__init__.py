"""Names on the Hugging Face Hub in place of paths: which files, and which commit they are of."""
