"""Fetches files from the Hugging Face Hub, and explains in one line why that failed."""
