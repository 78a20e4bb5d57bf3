"""The command `paligemma-edge`: arguments in, exit code out. The only room that prints."""
