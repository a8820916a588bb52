"""The routes of orders: the table of them, their bodies, and what each does."""
