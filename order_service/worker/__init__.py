"""The stream: from commands to events, exactly once. See ARCHITECTURE.md for claim and turn."""
