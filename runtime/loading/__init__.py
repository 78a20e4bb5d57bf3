"""From a manifest to an open engine: which variant, what memory, which options, which graphs."""
