"""`python -m examples.train_vit`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from examples.nets import vit_tiny_shapes
from examples.training import Recipe, main

RECIPE = Recipe(epochs=18, rate=1e-3, decay=0.05, batch=50)

if __name__ == "__main__":
    main("ViT", vit_tiny_shapes, RECIPE, Path("examples/models/vit_shapes.safetensors"))
