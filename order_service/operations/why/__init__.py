"""Why: where an order or a command is now, and everything known about it."""
