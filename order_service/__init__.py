"""The Order Service: orders as events in Kafka, every command decided exactly once."""

__version__ = "0.1.0"
