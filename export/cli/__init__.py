"""The commands `export`, `verify` and `adapter`: the only room that parses options or prints."""
