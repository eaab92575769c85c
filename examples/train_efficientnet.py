"""`python -m examples.train_efficientnet`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from examples.efficient import efficientnet_small
from examples.training import Recipe, main

RECIPE = Recipe(epochs=12, rate=3e-3, decay=0.05, half=False)

if __name__ == "__main__":
    main("EfficientNet", efficientnet_small, RECIPE, Path("examples/models/efficientnet_small.pt"))
