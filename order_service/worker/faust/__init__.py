"""Everything that knows Faust's internals. What remains of Faust is group membership, the agent loop and signals."""
