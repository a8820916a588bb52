"""What `up` and the tests run on one machine: Kafka, and the processes beside it."""
