"""The graphs, each written as the architecture reads."""
