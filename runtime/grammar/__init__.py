"""Which tokens an answer may take next."""
