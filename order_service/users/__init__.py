"""The User Service: our client of it, and a stub of it for tests and the embedded run."""
