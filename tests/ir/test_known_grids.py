"""Grids that weights are on: found where they are, with every value kept, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from normfold.ir.grids import grid_of, spread
from normfold.ir.known_grids import Blocks, blocks_of, channels_of

ROWS, INPUTS = 48, 160
ULP = 2.0**-23


def integers(low: int, high: int, inputs: int = INPUTS) -> Tensor:
    """Both ends in every row, so that no grid of fewer bits will do."""
    q = torch.randint(low, high + 1, (ROWS, inputs)).float()
    q[:, 0], q[:, 1] = low, high
    return q


def rows() -> Tensor:
    return torch.rand(ROWS, 1) + 0.1


def blocks(size: int) -> Tensor:
    return (torch.rand(ROWS, -(-INPUTS // size)) + 0.1).repeat_interleave(size, 1)[:, :INPUTS]


def without(weight: Tensor, row: slice, value: float) -> Tensor:
    weight[row] = value
    return weight


def restored(found: Blocks) -> Tensor:
    zero = torch.tensor(2 ** (found.bits - 1)) if found.zero_point is None else found.zero_point
    wide = (
        [spread(part.double(), found.integers, 1, found.block) for part in (zero, found.scale)]
        if found.zero_point is not None
        else [zero.double(), spread(found.scale.double(), found.integers, 1, found.block)]
    )
    return (found.integers.double() - wide[0]) * wide[1]


# what was made of integers and scales -> bits, block, zero points
ON_GRIDS: dict[str, tuple[Callable[[], Tensor], tuple[int, int, bool]]] = {
    "ternary, one scale": (lambda: integers(-1, 1) * 0.037, (2, 64, False)),
    "binary rows": (lambda: (integers(0, 1) * 2 - 1) * rows(), (2, 64, False)),
    "zeros and one value": (lambda: integers(0, 1) * rows(), (2, 64, False)),
    "four values": (lambda: integers(-2, 1) * rows(), (2, 64, False)),
    "four values, the other way": (lambda: integers(-1, 2) * rows(), (2, 64, True)),
    "4 bits, rows": (lambda: integers(-8, 7) * rows(), (4, 32, False)),
    "4 bits, no zero inside": (lambda: integers(3, 15) * rows(), (4, 32, True)),
    "4 bits, a zero point": (lambda: integers(-3, 12) * rows(), (4, 32, True)),
    "4 bits, blocks of 16": (lambda: integers(-8, 7) * blocks(16), (4, 16, False)),
    "4 bits, blocks of 64": (lambda: integers(-8, 7) * blocks(64), (4, 32, False)),
    "8 bits, rows": (lambda: integers(-127, 127) * rows(), (8, 32, False)),
    "8 bits, blocks of 32": (lambda: integers(-127, 127) * blocks(32), (8, 32, False)),
    "8 bits, a zero point": (lambda: integers(-10, 245) * rows(), (8, 32, True)),
    "a gain folded into rows": (lambda: integers(-8, 7) * rows() * rows(), (4, 32, False)),
    "rows of zeros": (lambda: without(integers(-8, 7) * rows(), slice(5, 12), 0.0), (4, 32, False)),
    "rows of one value": (
        lambda: without(integers(-1, 1) * rows(), slice(0, 9), 0.3),
        (2, 64, False),
    ),
    "all zeros": (lambda: torch.zeros(ROWS, INPUTS), (2, 64, False)),
    "large and small": (
        lambda: integers(-8, 7) * 10 ** (40 * torch.rand(ROWS, 1) - 25),
        (4, 32, False),
    ),
}


@pytest.mark.parametrize("name", ON_GRIDS)
def test_found_with_every_value(name: str) -> None:
    torch.manual_seed(0)
    make, (bits, block, zeros) = ON_GRIDS[name]
    weight = make()
    found = blocks_of(weight)
    assert found is not None
    assert (found.bits, found.block, found.zero_point is not None) == (bits, block, zeros)
    assert int(found.integers.max()) < 2**bits
    wanted = weight.double()
    assert bool(((restored(found) - wanted).abs() <= 2 * ULP * wanted.abs()).all())


def test_the_scale_that_made_the_values_is_found() -> None:
    """Up to a factor that is in the integers, so that the products are bit for bit those of the network."""
    torch.manual_seed(0)
    for low, high in ((-1, 1), (-8, 7), (-127, 127)):
        weight = integers(low, high) * rows()
        found = blocks_of(weight)
        assert found is not None
        products = restored(found).float()  # of two floats: exact in float64, rounded once
        assert torch.equal(products, weight)


OFF_GRIDS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(ROWS, INPUTS),
    "off by 1e-5": lambda: integers(-8, 7) * rows() * (1 + 1e-5 * torch.randn(ROWS, INPUTS)),
    "off by 1e-6": lambda: integers(-1, 1) * rows() * (1 + 1e-6 * torch.randn(ROWS, INPUTS)),
    "one value off": lambda: without(integers(-1, 1) * 0.5, slice(7, 8), 0.5).index_put_(
        (torch.tensor(7), torch.tensor(9)), torch.tensor(0.500001)
    ),
    "a gain folded into columns": lambda: integers(-1, 1) * torch.rand(1, INPUTS),
    "9 bits": lambda: integers(-255, 255) * rows(),
    "scales by 8 inputs": lambda: integers(-127, 127) * blocks(8),
    "not finite": lambda: without(integers(-1, 1), slice(3, 4), float("inf")),
    "nan": lambda: without(integers(-1, 1), slice(3, 4), float("nan")),
}


@pytest.mark.parametrize("name", OFF_GRIDS)
def test_not_found(name: str) -> None:
    torch.manual_seed(0)
    assert blocks_of(OFF_GRIDS[name]()) is None


def test_random_rows_of_few_inputs_are_on_no_grid() -> None:
    torch.manual_seed(0)
    assert blocks_of(torch.randn(4096, 3)) is None
    assert channels_of(torch.randn(512, 1, 3, 3), 0) is None


def test_half_precision_is_told_from_float32() -> None:
    """A ternary weight is exact in half precision; one of 4 bits is rounded, and then on no grid of float32."""
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        assert blocks_of((integers(-1, 1) * rows()).to(dtype)) is not None
        rounded = (integers(-8, 7) * rows()).to(dtype)
        assert blocks_of(rounded) is None
        found = blocks_of(rounded, stored=dtype)
        assert found is not None
        assert found.bits == 4


def test_at_least_as_many_bits() -> None:
    torch.manual_seed(0)
    weight = integers(-1, 1) * rows()
    found = blocks_of(weight, least=4)
    assert found is not None
    assert found.bits == 4
    assert torch.equal(restored(found).float(), weight)


@pytest.mark.parametrize(("axis", "block"), [(0, 0), (1, 0), (0, 16), (1, 16)])
@pytest.mark.parametrize("low", [-8, -7])
def test_a_grid_that_is_there_is_kept(axis: int, block: int, low: int) -> None:
    """The largest integer of a channel need not be there: the largest weight says nothing of the scale."""
    torch.manual_seed(0)
    q = torch.randint(low, 4, (32, 64)).float()
    q[0], q[:, 0] = low, low
    shape = {(0, 0): (32,), (1, 0): (64,), (0, 16): (2, 64), (1, 16): (32, 4)}[axis, block]
    weight = q * spread(torch.rand(shape) + 0.1, q, axis, block)
    scale, least = grid_of(weight, axis, 4, block)
    assert scale.shape == shape
    steps = weight.double() / spread(scale.double(), weight, axis, block)
    assert float((steps - steps.round()).abs().max()) < 1e-5
    assert float(steps.min()) >= least - 1e-5
    new, top = grid_of(torch.randn(32, 64), axis, 4, block)
    assert (new.shape, top) == (shape, -8 if block else -7)


def test_a_kernel_is_one_group_per_output_channel() -> None:
    torch.manual_seed(0)
    q = torch.randint(-1, 2, (6, 4, 3, 3)).float()
    for axis in (0, 1):
        scale = torch.rand(q.shape[axis]) + 0.1
        weight = q * spread(scale, q, axis, 0)
        found = channels_of(weight, axis)
        assert found is not None
        assert torch.equal(found[0].float() * spread(found[1], q, axis, 0), weight)
