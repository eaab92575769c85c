"""Eval mode of every norm: the affine it says, what `start` set, and what a captured network folds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir.graph import op_name
from normfold.nn import OfflineNorm, PowerNorm, recording
from tests.nn.norms import KINDS, STATISTICAL, norm_of, tokens


@pytest.mark.parametrize("axis", [-1, 1], ids=["last", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_start_is_exact(kind: str, axis: int) -> None:
    """With eta at 0.7, a channel that never varies and means far from 0."""
    norm = norm_of(kind, axis=axis)
    rows = tokens(3, 2, 5, 4)
    rows[..., 3] = 0.1
    x = rows.movedim(-1, axis)
    seen = norm.prepare(x).movedim(axis, -1).flatten(0, -2)
    scale, shift = tokens(4, seed=1), tokens(4, seed=2)
    norm.start(scale, shift, seen.mean(0), seen.square().mean(0))
    norm.training = False
    for found, wanted in zip(norm.affine(), (scale, shift), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    wanted = seen.view(rows.shape) * scale + shift
    torch.testing.assert_close(norm(x).movedim(axis, -1), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", STATISTICAL)
def test_start_sets_the_statistics_of_training(kind: str) -> None:
    """A norm that starts from a batch's moments normalises that batch in training as in eval mode."""
    norm = norm_of(kind)
    x = tokens(8, 40, 4)
    seen = norm.prepare(x).flatten(0, 1)
    norm.start(tokens(4, seed=1), tokens(4, seed=2), seen.mean(0), seen.square().mean(0))
    with recording(norm), torch.no_grad():
        trained = norm(x)
    norm.training = False
    torch.testing.assert_close(norm(x), trained, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_is_differentiable_and_stateless(kind: str) -> None:
    norm = norm_of(kind)
    norm.training = False
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = tokens(2, 3, 4).requires_grad_()
    norm(x).sum().backward()
    scale, _ = norm.affine()
    if not isinstance(norm, PowerNorm):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, scale.detach().expand_as(x))
    of_eval = {n for n, p in norm.named_parameters() if p.grad is not None}
    assert of_eval == {n for n, _ in norm.named_parameters() if not n.startswith("ln_")}
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name])


class Net(nn.Module):
    """Norms behind a convolution and in front of a linear layer."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.first: OfflineNorm = norm_of(kind, axis=1)
        self.second: OfflineNorm = norm_of(kind)
        self.last = nn.Linear(4, 5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x)).flatten(2).transpose(1, 2).relu()
        result: Tensor = self.last(self.second(x))
        return result


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in KINDS if kind != "bn"), ("prepbn", torch.bfloat16)],
    ids=str,
)
def test_a_captured_norm_folds(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = Net(kind, dtype)
    for module in net.modules():
        module.training = False
    x = torch.randn(2, 3, 5, 6, dtype=dtype)
    graph, _ = normfold.run(normfold.capture(net, (x,)), "canonicalize,fold-affine,bake")
    ops = [op_name(node) for node in graph.nodes if node.op == "call_function"]
    left = {
        "mul",
        "rsqrt",
        "sub",
        "div",
        "batch_norm",
        "normfold::channel_affine",
        "add",
        "to",
        "_to_copy",
    }
    # the scaling of groups is in the way of the first norm
    expected = {"normfold::channel_affine"} if kind == "powernorm groups" else set()
    assert left & set(ops) == expected, " ".join(ops)
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(graph.module(x), net(x), rtol=tolerance, atol=tolerance)
