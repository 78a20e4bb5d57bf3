"""The operating system: memory and CPU of this process, locks, flushes, atomic files."""
