"""The worker: turns commands into events, exactly once. ARCHITECTURE.md describes claims and turns."""
