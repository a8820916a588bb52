"""What a worker looks at while it runs: its group, its topics, the ends of its partitions, lanes that stand still."""
