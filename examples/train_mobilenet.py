"""`python -m examples.train_mobilenet`, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from examples.nets import mobilenet_v2_small
from examples.training import Recipe, main

RECIPE = Recipe(epochs=12, rate=3e-3, decay=0.05, half=False)

if __name__ == "__main__":
    main(
        "MobileNetV2 (small)",
        mobilenet_v2_small,
        RECIPE,
        Path("examples/models/mobilenet_v2_small.pt"),
    )
