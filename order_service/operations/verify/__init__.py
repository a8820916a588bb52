"""Verify: read all topics, and report what is damaged or does not match."""
