"""The command line: parse, call one facade function, print, exit. Commands import torch when they run."""

from normfold.cli.app import app, main

__all__ = ["app", "main"]
