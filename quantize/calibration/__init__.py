"""Statistics of what each layer reads, from running questions through the graphs."""
