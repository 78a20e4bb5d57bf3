"""How near a variant's answers are to those of the lossless one."""
