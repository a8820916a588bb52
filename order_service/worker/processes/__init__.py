"""A worker of several processes: the parent that runs them, and its admin port, which answers for all of them."""
