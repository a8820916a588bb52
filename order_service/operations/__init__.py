"""The tools of an operator, each in its own package, and what they share. The command line shows them."""
