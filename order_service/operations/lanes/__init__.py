"""Lanes: list them, and let a parked one go on."""
