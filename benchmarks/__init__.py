"""Measurements of speed and memory. Nothing here is asserted, and no figure is written down in the code."""
