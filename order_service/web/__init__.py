"""HTTP: commands, queries and the audit trail."""
