"""Who may call, and how often: tokens, their keys, loopback, rate limits."""
