"""Runnable examples: a rendered data set, trained networks, and scripts that convert them."""
