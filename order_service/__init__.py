"""The Order Service: it reads commands from Kafka, decides each exactly once, and writes events."""

__version__ = "0.1.0"
