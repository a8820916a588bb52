"""The Kafka layer of every process: connections, topics, committed reads, producing commands, the schema registry."""
