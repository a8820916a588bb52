"""The checks of `doctor`: one module for each dependency, or for the state of the service in Kafka."""
