"""What is said of dynamic axes, and the shapes that an engine is built for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.ir import capture
from normfold.targets.tensorrt.profiles import Range, Ranges, parse_dynamic, profile
from normfold.targets.tensorrt.write import _limits

IMAGES: dict[str, list[int | str | None]] = {"x": ["batch", 3, 8, 8]}
TOKENS: dict[str, list[int | str | None]] = {
    "ids": ["batch", "ids_1"],
    "mask": ["batch", "ids_1"],
}
EXAMPLES = {"x": (2, 3, 8, 8), "ids": (2, 16), "mask": (2, 16)}


def test_texts_are_read() -> None:
    axes, ranges = parse_dynamic(["ids:1", "x:0=1..8..64", "a:b:2=4..16"])
    assert axes == ["ids:1", "x:0", "a:b:2"]
    assert ranges == {"x": {0: Range(1, 8, 64)}, "a:b": {2: Range(4, 16, 16)}}
    assert str(ranges["x"][0]) == "1..8..64"


@pytest.mark.parametrize(
    "text",
    [
        "x:0=8..1..64",
        "x:0=1..64..8",
        "x:0=0..1..2",
        "x:0=1",
        "x:0=",
        "x:0=-1..2..3",
        "x:0=1..2..3..4",
        "x:0=one..two..three",
        "x=1..2..3",
        "x:first=1..2..3",
    ],
)
def test_texts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="NAME:AXIS=MIN"):
        parse_dynamic([text])


def test_a_batch_has_a_default_that_is_said() -> None:
    shapes, notes = profile(IMAGES, EXAMPLES, {})
    assert shapes == {"x": ((1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8))}
    assert notes == ["`x:0` is built for 1..8..64: `--dynamic x:0=MIN..OPT..MAX` sets it"]


def test_what_was_asked_is_taken_and_nothing_said() -> None:
    shapes, notes = profile(IMAGES, EXAMPLES, {"x": {0: Range(2, 4, 6)}})
    assert (shapes["x"], notes) == (((2, 3, 8, 8), (4, 3, 8, 8), (6, 3, 8, 8)), [])


def test_another_axis_goes_up_to_the_example() -> None:
    shapes, notes = profile(TOKENS, EXAMPLES, {"ids": {0: Range(1, 1, 4)}})
    assert shapes["ids"] == ((1, 1), (1, 16), (4, 16))
    assert shapes["mask"] == shapes["ids"]  # the same sizes
    assert [note.split()[0] for note in notes] == ["`ids:1`", "`mask:1`"]


def test_fixed_inputs_have_no_profile() -> None:
    assert profile({"x": [2, 3], **IMAGES}, EXAMPLES, {})[0].keys() == {"x"}
    assert profile({"x": [2, 3]}, EXAMPLES, {}) == ({}, [])


@pytest.mark.parametrize(
    ("ranges", "parts"),
    [
        ({"y": {0: Range(1, 2, 3)}}, ["`y:0` is not a dynamic axis", "no such input", "x, ids"]),
        ({"x": {1: Range(1, 2, 3)}}, ["`x:1` is not a dynamic axis", "3, 8, 8"]),
        ({"x": {4: Range(1, 2, 3)}}, ["`x:4` is not a dynamic axis"]),
        ({"ids": {1: Range(1, 2, 41)}}, ["at most 40 along `ids:1`", "1..2..41"]),
        (
            {"ids": {1: Range(1, 2, 3)}, "mask": {1: Range(1, 2, 4)}},
            ["different ranges", "`mask:1=1..2..4`", "1..2..3"],
        ),
    ],
)
def test_ranges_that_cannot_be(ranges: Ranges, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        profile({**IMAGES, **TOKENS}, EXAMPLES, ranges, {"ids": {1: 40}})
    for part in parts:
        assert part in str(caught.value)


class Positions(nn.Module):
    """Adds a slice of a table that has 40 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


def test_what_the_network_takes_at_most() -> None:
    auto = torch.export.Dim.AUTO
    graph = capture(Positions(), (torch.randn(2, 6, 4),), dynamic=({0: auto, 1: auto},))
    assert _limits(graph) == {"x": {1: 40}}
