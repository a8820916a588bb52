"""What changes while a caller waits: new rows of the views, results of commands, event streams."""
