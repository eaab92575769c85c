from pathlib import Path

import torch
from torch import Tensor, nn

from normfold.testing import check, declines, equivalent, no_op
from normfold_plugin_example import FoldScale

IMAGES = (torch.randn(2, 3, 8, 8),)


class Scaled(nn.Module):
    """A convolution times 0.5, and a head with a temperature of 2.5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(0.5 * self.conv(x)).mean((2, 3))
        return self.head(x) / 2.5  # type: ignore[no-any-return]


class Reused(Scaled):
    """Scores with and without the temperature."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = self.head(self.conv(x).mean((2, 3)))
        return scores, scores / 2.5


class Twice(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3))) * 2 / 3  # type: ignore[no-any-return]


def test_all_promises() -> None:
    golden = Path(__file__).parent / "golden" / "fold_scale.txt"
    made = check(FoldScale(), Scaled(), IMAGES, file=golden)
    assert made == ("reads_only", "idempotent", "equivalent", "limit", "mutants", "golden")


def test_both_scales_of_a_head() -> None:
    assert equivalent(FoldScale(), Twice(), IMAGES).rewrites == 2


def test_an_output_that_is_read_without_the_scale() -> None:
    declines(FoldScale(), Reused(), IMAGES, code="output-reused", site="head")


def test_nothing_to_fold() -> None:
    no_op(FoldScale(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES)
