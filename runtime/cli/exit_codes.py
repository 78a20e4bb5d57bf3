"""What the exit code of `paligemma-edge` says; 0 is done.

A command that a signal stopped has 128 and the signal's number, as a shell gives it: 130 is Ctrl-C.
"""

EXIT_FAILED, EXIT_USAGE, EXIT_NO_SPACE = 1, 2, 3
