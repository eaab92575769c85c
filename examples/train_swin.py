"""`python -m examples.train_swin`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from examples.swin import swin_shapes
from examples.training import Recipe, main

RECIPE = Recipe(epochs=24, rate=5e-4, decay=0.05, batch=50, half=False)

if __name__ == "__main__":
    main("Swin", swin_shapes, RECIPE, Path("examples/models/swin_shapes.safetensors"))
