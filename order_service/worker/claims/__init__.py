"""The claim, by which a worker takes over a partition: what it reads and checks, and the Kafka clients it uses."""
