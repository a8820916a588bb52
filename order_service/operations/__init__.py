"""Tools of an operator: they read the topics and say what is damaged. The command line shows them."""
