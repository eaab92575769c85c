"""Writes and composite ops, replaced where they stand: the graph does what the network does."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from normfold.ir import Graph, capture
from normfold.ir.functional import COMPOSITE_VIEWS, _is_composite
from normfold.ir.inline import NotLocal
from tests.nets import Compose, perturb

Net = Callable[[Tensor], Any]
SHAPE = (2, 6, 4, 4)
CAPTURE = importlib.import_module("normfold.ir.capture")


@pytest.fixture
def wholly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was left to torch's own trace."""
    found: list[str] = []
    own = CAPTURE.functionalise

    def watched(module: fx.GraphModule) -> None:
        try:
            own(module)
        except NotLocal as error:
            found.append(str(error))
            raise

    monkeypatch.setattr(CAPTURE, "functionalise", watched)
    return found


def _agrees(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> Graph:
    """The captured network: equal at other sizes of the batch, its inputs as they were, none of these ops left."""
    net = net.eval().double()
    graph = capture(net, (torch.randn(shape, dtype=torch.float64),))
    for batch in (1, 2, 5):
        x = torch.randn(batch, *shape[1:], dtype=torch.float64)
        before = x.clone()
        with torch.no_grad():
            wanted = net(x.clone())
        torch.testing.assert_close(graph(x), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(x, before)
    for node in graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            views = any(item.alias_info for item in target._schema.arguments)
            assert not target._schema.is_mutable, target
            assert not (views and _is_composite(target)), target
    return graph


class Convolutions(nn.Module):
    """Convolutions with BatchNorms around a function of feature maps."""

    def __init__(self, function: Net) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.last = nn.Conv2d(6, 6, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x)) + self.last(x)


def _residual(y: Tensor) -> Tensor:
    x = y.relu()
    y = torch.sigmoid(y).mul_(2).relu_()
    return x.add_(y).clamp_(-1, 1)


def _read_after(y: Tensor) -> Tensor:
    z = y.add_(1)
    return y * z


def _into_a_slice_alone(y: Tensor) -> Tensor:
    half = torch.cat([y, y], 1)[:, :6]
    half += 3
    return half


def _pieces(y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    b += a
    return torch.cat([b, a], 1)


def _views_of_pieces(y: Tensor) -> Tensor:
    q, k, v = y.unflatten(1, (3, 2)).unbind(1)
    q.flatten(1).mul_(0.5)
    k.relu_()
    return torch.cat([v, k, v * 2], 1)


PLAIN: dict[str, Net] = {
    "pieces": _pieces,
    "views of pieces": _views_of_pieces,
    "residual": _residual,
    "read after": _read_after,
    "slice alone": _into_a_slice_alone,
    "composite that writes": lambda y: torch.square_(y.clip_(-2, 2)),
    "twice the same": lambda y: y.add_(y),
    "filled": lambda y: y.masked_fill_(y > 0, 0.5),
    "views": lambda y: y.flatten(1).view(-1, 6, 16).reshape(-1, 6, 4, 4).contiguous(),
    "lists": lambda y: torch.cat([*y.chunk(3, 1)[1:], *y.split([1, 1, 4], 1)[:2]], 1),
    "one call, other strides": lambda y: sum(
        z.reshape(-1, 96).view_as(y) * (2 + place)
        for place, z in enumerate((y, y.transpose(2, 3), y.contiguous()))
    ),
    "dropped": lambda y: nn.functional.dropout(y, 0.5, False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_replaced_where_it_stands(name: str, wholly: list[str]) -> None:
    _agrees(perturb(Convolutions(PLAIN[name])))
    assert not wholly


class Wrapped(nn.Module):
    """Parts without gradients and without autocast, one within the other; the caller's gradients are on."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.scale = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.proj(x)
        with torch.no_grad():
            z = y.relu().add_(1)
            with torch.autocast("cpu", enabled=False):
                w = (z.float() * self.scale).unflatten(1, (2, 3))
            v = z.flatten(0) * 2
        return y + z, w + v.sum()


@pytest.mark.parametrize("gradients", [True, False])
def test_parts_without_gradients_or_autocast(gradients: bool, wholly: list[str]) -> None:
    net, x = Wrapped().eval(), torch.randn(3, 6)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(net, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert any("wrap_with" in str(node.target) for node in program.graph.nodes)
    graph = capture(program)
    assert not wholly
    assert not any("wrap_with" in str(node.target) for node in graph.nodes)
    for batch in (1, 5):
        x = torch.randn(batch, 6)
        torch.testing.assert_close(graph(x), net(x))


def test_autocast_is_traced_whole(wholly: list[str]) -> None:
    def half(self: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.proj(x)  # type: ignore[operator, no-any-return]

    net, x = Compose(half, proj=nn.Linear(6, 6)), torch.randn(3, 6)
    torch.testing.assert_close(capture(net, (x,))(x), net(x))
    assert wholly


def _view_before(y: Tensor) -> Tensor:
    view = y.flatten(1)
    y.relu_()
    return view.view_as(y) * 2


def _into_a_view(y: Tensor) -> Tensor:
    y.add_(1)
    y.flatten(1).mul_(2)
    return y


def _into_a_view_of_what_was_written(y: Tensor) -> Tensor:
    z = y.relu_()
    z.view(-1, 6, 16).add_(1)
    return z * y


def _slice_assigned(y: Tensor) -> Tensor:
    y[:, 1:3] = y[:, 3:5] * 2
    return y


def _into_a_part(y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    a.neg_()
    return torch.cat([b, a], 1) + y


def _border(y: Tensor) -> Tensor:
    y[..., 0].zero_()
    return y


def _transposed(y: Tensor) -> Tensor:
    other = y.transpose(2, 3)
    other.add_(torch.arange(4.0, dtype=y.dtype))
    return y


SHARED: dict[str, Net] = {
    "view before": _view_before,
    "into a view": _into_a_view,
    "into a view of what was written": _into_a_view_of_what_was_written,
    "slice assigned": _slice_assigned,
    "into a part": _into_a_part,
    "border": _border,
    "transposed": _transposed,
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory_is_traced_whole(name: str, wholly: list[str]) -> None:
    _agrees(perturb(Convolutions(SHARED[name])))
    assert wholly


def test_an_input_that_is_written_into(wholly: list[str]) -> None:
    net = Compose(lambda _, x: x.mul_(2) + 1)
    x = torch.randn(SHAPE)
    graph = capture(net, (x,))
    assert wholly
    torch.testing.assert_close(graph(x), 2 * x + 1)
    assert any("changes its input" in note for note in graph.notes)


def test_a_buffer_that_is_written_into(wholly: list[str]) -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.ones(1))

        def forward(self, x: Tensor) -> Any:
            self.calls.add_(1)
            return x * self.calls

    x = torch.randn(SHAPE)
    graph = capture(Counting(), (x,))
    assert wholly
    torch.testing.assert_close(graph(x), 2 * x)


def test_the_type_of_what_is_written_stays(wholly: list[str]) -> None:
    net = Compose(lambda _, x: x.half().add_(x).float())
    x = torch.randn(SHAPE)
    torch.testing.assert_close(capture(net, (x,))(x), net(x), rtol=0, atol=0)
    assert wholly  # the op that returns its result would be of float32


def test_a_norm_of_batch_statistics_is_traced_whole(wholly: list[str]) -> None:
    net = nn.BatchNorm2d(6, track_running_stats=False)
    _agrees(net)
    assert wholly


# Calls by the names of `COMPOSITE_VIEWS`.
VIEWS: dict[str, Net] = {
    "adjoint": lambda x: x.adjoint(),
    "atleast_1d": torch.atleast_1d,
    "atleast_2d": torch.atleast_2d,
    "atleast_3d": torch.atleast_3d,
    "broadcast_to": lambda x: x[:, :1].broadcast_to(x.shape),
    "chunk": lambda x: x.chunk(4, 1)[1],
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "dsplit": lambda x: x.dsplit(2)[1],
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "flatten": lambda x: x.flatten(2),
    "hsplit": lambda x: x.hsplit([1, 3])[1],
    "linalg_diagonal": torch.linalg.diagonal,
    "mH": lambda x: x.mH,
    "mT": lambda x: x.mT,
    "matrix_H": lambda x: x[0, 0].H + x,
    "moveaxis": lambda x: x.moveaxis(1, 3),
    "movedim": lambda x: x.movedim((1, 2), (2, 3)),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "numpy_T": lambda x: x[0, 0].T + x,
    "positive": lambda x: x.positive(),
    "ravel": lambda x: x[0].ravel() + x.flatten(1),
    "reshape": lambda x: x.transpose(1, 2).reshape(-1, 24, 4),
    "reshape_as": lambda x: x.transpose(1, 2).reshape_as(x),
    "split": lambda x: x.split([2, 4], 1)[1],
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "swapdims": lambda x: x.swapdims(2, 3),
    "tensor_split": lambda x: x.tensor_split(4, 1)[1],
    "to": lambda x: x.to(torch.float32).to(x.dtype),
    "unflatten": lambda x: x.unflatten(1, (2, 3)),
    "unsafe_chunk": lambda x: x.unsafe_chunk(3, 1)[2],
    "view_as": lambda x: x.view_as(x[..., :]),
    "vsplit": lambda x: x.transpose(0, 1).vsplit(2)[1].transpose(0, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_composite_views(name: str) -> None:
    _agrees(Compose(lambda _, x: VIEWS[name](x) * 2))


def _windows(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = nn.functional.pad(x, (0, -width % 4, 0, -height % 4))
    x = x.view(batch, channels, x.shape[2] // 4, 4, x.shape[3] // 4, 4)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)


SIZES: dict[str, Net] = {
    "windows": _windows,
    "squares": lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "of what is computed": lambda x: torch.cat([x, x], 3).relu().flatten(2),
    "number": lambda x: x.sum((1, 2, 3)) / x.relu().numel() * x.shape[2] ** 2,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_read_from_the_inputs(name: str, wholly: list[str]) -> None:
    net = Compose(lambda _, x: SIZES[name](x))
    free = {"inputs": (dict.fromkeys((0, 2, 3), Dim.DYNAMIC),)}
    graph = capture(net, (torch.randn(2, 6, 8, 12),), dynamic=free)
    assert bool(wholly) == (name == "windows")  # whether 16 divides the number is a new guard
    for shape in ((1, 6, 8, 12), (3, 6, 4, 7), (2, 6, 13, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(graph(x), net(x))
    read = [node for node in graph.nodes if str(node.target).startswith("aten.sym_")]
    assert read
    assert {source.op for node in read for source in node.all_input_nodes} == {"placeholder"}


def test_every_composite_view_is_tried() -> None:
    assert set(VIEWS) == COMPOSITE_VIEWS
