"""A bundle beside its original in transformers, stage by stage."""
