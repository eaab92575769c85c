"""Memory: what a call writes into, what shares it, and ops that ask how a tensor lies in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import CaptureError
from normfold.ir import capture
from normfold.ir.fresh import call, copied, fresh
from normfold.judge import Verifier
from normfold.passes.canonicalize import Canonicalize
from normfold.rewrite import run_pipeline
from normfold.targets import RuntimeSession, export_onnx
from tests.nets import Compose, perturb

Forward = Callable[..., Any]


def _net(forward: Forward, **more: Any) -> Compose:
    net = Compose(forward, lin=nn.Linear(6, 6))
    for name, value in more.items():
        net.register_buffer(name, value)
    perturb(net)
    return net


def _right(net: nn.Module, folder: Path, *shapes: tuple[int, ...]) -> list[str]:
    """The file is the network's first call, on other inputs too, and that stays as it was. Returns the notes."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    graph = capture(net, tuple(torch.randn(shape) for shape in shapes))
    assert Verifier(graph).capture().ok
    file = export_onnx(graph, folder / "net.onnx").path
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = [torch.randn(shape) for shape in shapes]
        with torch.no_grad():
            wanted = call(net, *(x.clone() for x in inputs))
        got = RuntimeSession(file, threads=1).run(inputs)
        for ours, theirs in zip(
            got, wanted if isinstance(wanted, tuple) else [wanted], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    return graph.notes


def _clamps(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    with torch.no_grad():
        self.lin.weight.clamp_(-0.1, 0.1)
    return y + self.lin(x)


def _halves(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        self.lin.weight.mul_(0.5)
    return self.lin(x)


def _normalises(self: Any, x: Tensor) -> Any:
    y, w = self.lin(x), self.lin.weight.detach()
    w.copy_(w / w.norm(dim=1, keepdim=True))
    return y + self.lin(x)


@pytest.mark.parametrize("forward", [_clamps, _halves, _normalises])
def test_parameters_that_are_written(forward: Forward, tmp_path: Path) -> None:
    notes = _right(_net(forward), tmp_path, (2, 6))
    assert any("changes the parameter `lin.weight`" in note for note in notes)


def test_a_write_through_data_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.lin.weight.data.clamp_(-0.1, 0.1)
        return self.lin(x)

    with pytest.raises(CaptureError):
        capture(_net(forward), (torch.randn(2, 6),))


class Tied(nn.Module):
    """A buffer in the memory of a parameter."""

    w: Tensor
    lin: nn.Linear

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.lin, self.written = nn.Linear(6, 6), written
        self.register_buffer("w", self.lin.weight.data)

    def forward(self, x: Tensor) -> Any:
        if self.written:
            self.w.mul_(2)
        return self.lin(x) + self.w.sum()


def _doubles(self: Any, x: Tensor) -> Any:
    self.part.add_(1)
    return self.lin(x) * self.whole


def test_memory_that_is_shared_and_written_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"into `w`, which shares its memory with `lin.weight`"):
        capture(Tied(True), (torch.randn(2, 6),))
    whole = torch.ones(6)
    for part in (whole, whole[1:]):
        net = _net(_doubles)
        net.register_buffer("whole", whole)
        net.register_buffer("part", part)
        with pytest.raises(CaptureError, match=r"into `part`, .* with `whole`\n  at "):
            capture(net, (torch.randn(2, 6),))


def test_memory_that_is_shared_and_only_read(tmp_path: Path) -> None:
    _right(Tied(False), tmp_path, (2, 6))


def test_copies_share_what_was_shared() -> None:
    net = Tied(True)
    other, own = fresh(net), copied(net)
    assert isinstance(other, Tied)
    assert isinstance(own, Tied)
    assert other.w.data_ptr() == other.lin.weight.data_ptr() == net.w.data_ptr()
    assert own.w.data_ptr() == own.lin.weight.data_ptr() != net.w.data_ptr()
    x, before = torch.randn(2, 6), net.w.clone()
    with torch.no_grad():
        y = call(net, x)
        torch.testing.assert_close(y, x @ (2 * before).T + net.lin.bias + 2 * before.sum())
    assert torch.equal(net.w, before)


def test_a_graph_is_put_back_as_it_was() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.count.add_(1)
        return self.lin(x) * self.count

    net = _net(forward, count=torch.ones(1))
    program = torch.export.export(net.eval(), (torch.randn(2, 6),)).module()
    before = dict(program.named_buffers())["count"].clone()
    with torch.no_grad():
        call(program, torch.randn(2, 6))
    assert torch.equal(dict(program.named_buffers())["count"], before)


def _masked(self: Any, x: Tensor, m: Tensor, n: Tensor) -> Any:
    return self.lin(x).masked_fill(~m, 0) + x.masked_fill(~n, 0)


@pytest.mark.parametrize("view", [False, True])
def test_a_tensor_that_is_given_twice_is_two_inputs(view: bool) -> None:
    net, x, mask = _net(_masked), torch.randn(2, 6), torch.rand(2, 6) > 0.3
    graph = capture(net, (x, mask, mask[:] if view else mask))
    given = (torch.randn(3, 6), torch.rand(3, 6) > 0.5, torch.rand(3, 6) > 0.5)
    torch.testing.assert_close(graph(*given), net(*given))


def _slice(self: Any, x: Tensor) -> Any:
    h = self.lin(x)
    return h * 2, h[:, 1:].as_strided((3, 2), (2, 1), 0)


def _own_offset(self: Any, x: Tensor) -> Any:
    return self.lin(x)[:, 1:].as_strided((3, 2), (2, 1))


def _behind_contiguous(self: Any, x: Tensor) -> Any:
    return self.lin(x).transpose(1, 2).contiguous().as_strided((2, 4), (4, 1), 1)


def _transposed(self: Any, x: Tensor) -> Any:
    return self.lin(x).transpose(1, 2).as_strided((3, 2), (2, 1), 0)


def _windows(self: Any, x: Tensor) -> Any:
    h = self.lin(x)
    return h.as_strided((*h.shape[:2], 4, 3), (*h.stride()[:2], 1, 1))


@pytest.mark.parametrize(
    "forward", [_slice, _own_offset, _behind_contiguous, _transposed, _windows]
)
def test_strides_are_of_elements(forward: Forward, tmp_path: Path) -> None:
    _right(_net(forward), tmp_path, (2, 4, 6))


def test_conjugates_are_computed() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        z = torch.complex(self.lin(x), x).conj()
        return torch.view_as_real(z.resolve_conj()), z.imag * 2

    net, x = _net(forward), torch.randn(2, 6)
    graph, _ = run_pipeline(capture(net, (x,)), [Canonicalize()])
    for ours, theirs in zip(graph(x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs)
