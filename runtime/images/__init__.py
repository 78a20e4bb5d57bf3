"""Images, however they are given, to pixel values."""
