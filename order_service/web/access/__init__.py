"""Authentication and limits: tokens, their keys, loopback-only access, rate limits."""
