"""The rules of orders: pure, typed, without I/O, clock or chance."""
