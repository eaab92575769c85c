"""The command line: parse, call one facade function, print, exit. torch is imported by the commands that need it."""

from normfold.cli.app import app, main

__all__ = ["app", "main"]
