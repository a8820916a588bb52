"""Faults on purpose, and what must be true of the log after them: nothing lost, nothing doubled."""
