"""Conformance over whole model families: `make family`, or ``pytest -m family tests/zoo``."""
