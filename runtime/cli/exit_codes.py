"""What the exit code of `paligemma-edge` says; 0 is done."""

EXIT_FAILED, EXIT_USAGE, EXIT_NO_SPACE, EXIT_INTERRUPTED = 1, 2, 3, 130
