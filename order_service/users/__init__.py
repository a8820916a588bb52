"""The User Service: our client for it, and a stub for tests and the embedded run."""
