"""The commands `export`, `verify` and `adapter`."""
