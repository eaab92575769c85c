"""Symmetries of spaces: sets that intersect, and networks whose outputs do not change under them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.rewrite import parse, run_pipeline
from normfold.spaces import symmetry
from normfold.spaces.spaces import Space, spaces
from normfold.spaces.symmetry import Transform, words
from tests.nets import perturb

WIDTH = 6


class Reads(nn.Module):
    """A linear layer that writes one space, and whatever reads it, each into a linear layer of its own."""

    def __init__(self, *readers: nn.Module) -> None:
        super().__init__()
        self.write = nn.Linear(5, WIDTH)
        self.readers = nn.ModuleList(readers)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in readers)

    def forward(self, x: Tensor) -> Any:
        x = self.write(x)
        return [head(read(x)) for read, head in zip(self.readers, self.heads, strict=True)]


def space(*readers: nn.Module, text: str = "canonicalize,fold-affine") -> Space:
    graph = capture(perturb(Reads(*readers)), (torch.randn(4, 5),))
    return spaces(run_pipeline(graph, parse(text))[0])[0]


def bare(kind: type[nn.Module]) -> nn.Module:
    return kind(WIDTH, elementwise_affine=False)


@pytest.mark.parametrize(
    ("readers", "expected"),
    [
        ([nn.Identity()], symmetry.LINEAR),
        ([bare(nn.LayerNorm)], symmetry.LAYER_NORM),
        ([bare(nn.RMSNorm)], symmetry.RMS_NORM),
        ([nn.ReLU()], symmetry.HOMOGENEOUS),
        ([nn.GELU()], symmetry.POINTWISE),
    ],
)
def test_one_reader(readers: list[nn.Module], expected: symmetry.Symmetry) -> None:
    assert space(*readers).symmetry == expected


@pytest.mark.parametrize(
    ("readers", "text"),
    [
        (["layer", "rms"], "orthogonal maps that fix 1, positive scale"),
        (["layer", "relu"], "permutations, positive scale"),
        (["rms", "relu"], "permutations, positive scale"),
        (["layer", "gelu"], "permutations"),
    ],
)
def test_several_readers_leave_what_all_of_them_leave(readers: list[str], text: str) -> None:
    made = {
        "layer": bare(nn.LayerNorm),
        "rms": bare(nn.RMSNorm),
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
    }
    assert words(space(*(made[name] for name in readers)).symmetry) == text


def test_a_batch_norm_beside_a_layer_norm() -> None:
    """Neither is contained in the other: what is left is smaller than both."""
    found = symmetry.common([symmetry.PER_CHANNEL, symmetry.LAYER_NORM])
    assert words(found) == "permutations, positive scale, adding c * 1"


def test_a_gain_that_stands_in_the_way() -> None:
    assert (
        space(nn.RMSNorm(WIDTH), text="canonicalize,restore").symmetry
        == symmetry.RMS_NORM_WITH_GAIN
    )
    assert (
        space(nn.LayerNorm(WIDTH), text="canonicalize,restore").symmetry
        == symmetry.LAYER_NORM_WITH_GAIN
    )


def drawn(family: Transform) -> Tensor:
    """A matrix of a family of linear transforms."""
    torch.manual_seed(1)
    square = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(square)[0]
    one = torch.ones(WIDTH, 1, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * (WIDTH // 2), dtype=torch.float64)
    match family:
        case Transform.INVERTIBLE:
            return square
        case Transform.ORTHOGONAL:
            return orthogonal
        case Transform.ORTHOGONAL_FIXING_ONE:  # a reflection along a vector that sums to zero
            v = square[:, :1] - square[:, :1].mean()
            found = torch.eye(WIDTH, dtype=torch.float64) - 2 * v @ v.T / (v.T @ v)
            assert torch.allclose(found @ one, one)
            return found
        case Transform.PERMUTATION:
            return torch.eye(WIDTH, dtype=torch.float64).index_select(0, torch.randperm(WIDTH))
        case Transform.DIAGONAL:
            return torch.diag(square[0])
        case Transform.POSITIVE_DIAGONAL:
            return torch.diag(square[0].exp())
        case Transform.SIGNS:
            return torch.diag(signs)
        case _:
            return 2.5 * torch.eye(WIDTH, dtype=torch.float64)


LINEAR = [family for family in Transform if family not in (Transform.SHIFT, Transform.SHIFT_OF_ALL)]
FUNCTIONS: dict[str, tuple[Any, symmetry.Symmetry]] = {
    "relu": (torch.relu, symmetry.HOMOGENEOUS),
    "gelu": (nn.functional.gelu, symmetry.POINTWISE),
    "layer_norm": (lambda x: nn.functional.layer_norm(x, (WIDTH,), eps=0.0), symmetry.LAYER_NORM),
    "rms_norm": (lambda x: nn.functional.rms_norm(x, (WIDTH,), eps=0.0), symmetry.RMS_NORM),
}


@pytest.mark.parametrize("family", LINEAR, ids=lambda family: family.name)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_sets_are_those_of_the_functions(name: str, family: Transform) -> None:
    """f(T x) is a linear function of f(x), T or the identity for a scale that a norm removes, or it is not."""
    function, expected = FUNCTIONS[name]
    x, t = torch.randn(50, WIDTH, dtype=torch.float64), drawn(family)
    wanted = function(x)
    found = function(x @ t.T)
    commutes = torch.allclose(found, wanted @ t.T) or torch.allclose(found, wanted)
    assert commutes == (family in expected)


def test_adding_one_number_to_all() -> None:
    x = torch.randn(50, WIDTH, dtype=torch.float64)
    for name, (function, expected) in FUNCTIONS.items():
        same = torch.allclose(function(x + 3), function(x))
        assert same == (Transform.SHIFT_OF_ALL in expected), name
