"""``python -m tests.fuzz``: damaged files and texts; only documented errors may come of them."""
