"""The yardstick, `torch.onnx.export(dynamo=True)` with its own defaults: see `main`."""

from __future__ import annotations

import importlib
import sys

import torch

from benchmarks.models import example_input


def main(factory: str, path: str) -> None:
    """Build, export with a dynamic batch, write."""
    module, _, name = factory.partition(":")
    model = getattr(importlib.import_module(module), name)()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, (example_input(model),), path, dynamo=True, dynamic_shapes=shapes)


if __name__ == "__main__":
    main(*sys.argv[1:])
