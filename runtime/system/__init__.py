"""The operating system: memory, CPU and streams of this process, locks, flushes, atomic files."""
