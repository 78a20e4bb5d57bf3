"""The operating system: what Linux tells of a process, locks, flushes, files that appear whole."""
