"""The HTTP API: commands, queries and the audit trail."""
