"""Standbys: which worker follows the changelogs of which partition of another worker, and how it follows them."""
