"""Conformance over whole model families: `make zoo`, or ``pytest -m zoo tests/zoo``."""
