"""What is known of ops: one row for each (`table`), linear ops, and how the feature axis moves through an op."""
