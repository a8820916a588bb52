"""The rules of orders: pure and typed, without I/O, clock or randomness."""
