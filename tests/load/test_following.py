"""Axes that must have the size of a free one follow it; what fixes a size is said with its line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import CaptureError, UsageError
from normfold.load import load
from normfold.load.capture import capture_loaded


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.layer(x, src_key_padding_mask=mask)


class Added(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


class Biased(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(1, 2) + other, -1) @ x


class Indexed(nn.Module):
    """Values are looked up: no op compares the sizes."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x * other[:, torch.arange(x.shape[1]).clamp(min=0)]


class Apart(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x.mean(1) + other.mean(1)


class Doubled(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x.repeat(1, 2, 1) + other


def _captured(net: nn.Module, *others: Tensor, axes: tuple[str, ...] = ("x:1",)) -> Any:
    loaded = load(net.eval(), inputs=(torch.randn(2, 5, 8), *others))
    return capture_loaded(loaded, "dynamic", axes)


@pytest.mark.parametrize(
    ("net", "other", "follows"),
    [
        (Encoder(), torch.zeros(2, 5, dtype=torch.bool), "`mask:1` follows `x:1`"),
        (Added(), torch.randn(2, 5, 8), "`other:1` follows `x:1`"),
        (Biased(), torch.randn(5, 5), "`other:0`, `other:1` follow `x:1`"),
        (Indexed(), torch.randn(2, 5, 8), "`other:1` follows `x:1`"),
        (Apart(), torch.randn(2, 5, 8), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_must_have_the_size_follows(net: nn.Module, other: Tensor, follows: str) -> None:
    graph = _captured(net, other)
    assert follows in "".join(graph.notes)
    assert bool(follows) == ("follow" in "".join(graph.notes))
    x = torch.randn(3, 7, 8)
    index = [torch.arange(7 if follows and n == 5 else n) % n for n in other.shape]
    if other.shape[0] == 2:
        index[0] = torch.arange(3) % 2
    for axis, places in enumerate(index):
        other = other.index_select(axis, places)
    torch.testing.assert_close(graph.module(x, other), net(x, other))


def test_axes_that_were_asked_for_are_tied_too() -> None:
    graph = _captured(Indexed(), torch.randn(2, 5, 8), axes=("x:1", "other:1"))
    sizes = [node.meta["val"].shape[1] for node in graph.nodes if node.op == "placeholder"]
    assert sizes[0] == sizes[1]
    assert not any("follow" in note for note in graph.notes)


def test_what_the_network_itself_refuses_is_said() -> None:
    with pytest.raises(CaptureError, match="repeat") as caught:
        _captured(Doubled(), torch.randn(2, 10, 8))
    assert "with `x:1` of 6 alone the network itself says" in str(caught.value)
    assert "leave out `--dynamic x:1`" in str(caught.value)


def test_a_free_axis_needs_two() -> None:
    loaded = load(Apart().eval(), inputs=(torch.randn(2, 1, 8), torch.randn(2, 5, 8)))
    with pytest.raises(UsageError, match="size of at least 2") as caught:
        capture_loaded(loaded, "dynamic", ("x:1",))
    assert "--input x:2x8x8" in str(caught.value)
