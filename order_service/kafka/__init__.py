"""Kafka as every process uses it: connections, topics, reading committed records, producing commands, the registry."""
