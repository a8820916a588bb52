"""Dead letters: list them, decide them against the present state, send their commands again, or discard them."""
