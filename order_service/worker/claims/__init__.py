"""How a worker takes over a partition: what it reads, what it checks, and the clients that it uses."""
