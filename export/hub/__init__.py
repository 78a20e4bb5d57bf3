"""Names on the Hugging Face Hub, as folders on the disk."""
