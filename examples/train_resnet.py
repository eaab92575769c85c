"""`python -m examples.train_resnet`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from examples.nets import resnet20
from examples.training import Recipe, main

RECIPE = Recipe(epochs=16, rate=3e-3, decay=0.05)

if __name__ == "__main__":
    main("ResNet-20", resnet20, RECIPE, Path("examples/models/resnet20.pt"))
