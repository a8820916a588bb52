"""Rebuild: write the changelogs of a partition again."""
