"""Feature spaces: what a tensor is made of, and who sees it."""
