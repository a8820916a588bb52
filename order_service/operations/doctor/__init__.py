"""Doctor: check every dependency from outside."""
