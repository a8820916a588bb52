"""Everything that `up` and the tests start on one machine: Kafka, and the processes beside it."""
