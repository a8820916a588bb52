"""What a running worker monitors: its group, its topics, the end offsets of its partitions, and stalled lanes."""
