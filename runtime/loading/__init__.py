"""From a bundle to an open model: which variant, what memory, which options, which graphs."""
