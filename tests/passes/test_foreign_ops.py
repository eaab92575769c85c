"""Ops of other libraries: what is not in the table is not mistaken for what is; a fused norm is one row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ops.table import TABLE, Norm, Op
from tests.nets import Compose, perturb

WIDTH = 8
_LIBRARY = torch.library.Library("acme", "DEF")


def _define(name: str, schema: str, function: Any) -> None:
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"acme::{name}", function, lib=_LIBRARY)


# named as an op of ATen, and something else: it is neither homogeneous nor a movement
_define("relu", "(Tensor x) -> Tensor", lambda x: torch.sin(x) * 2)
_define("permute", "(Tensor x, int[] dims) -> Tensor", lambda x, dims: x.softmax(-1))
_define(
    "fused_norm",
    "(Tensor input, Tensor weight, Tensor bias, float eps) -> Tensor",
    lambda input, weight, bias, eps: torch.nn.functional.layer_norm(
        input, weight.shape, weight, bias, eps
    ),
)


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.ops.acme.relu(x), lambda x: torch.ops.acme.permute(x, [0, 1, 2, 3])],
)
def test_names_of_other_libraries_are_their_own(function: Any) -> None:
    """`acme::relu` was taken for `aten::relu`, and a BatchNorm in front of it folded through it."""
    module = Compose(
        lambda m, x: m.last(function(m.norm(m.first(x).relu()))),
        first=nn.Conv2d(3, WIDTH, 3),
        norm=nn.BatchNorm2d(WIDTH),
        last=nn.Conv2d(WIDTH, 4, 1),
    )
    graph = normfold.capture(perturb(module), (torch.randn(2, 3, 6, 6),))
    _, report = normfold.run(graph, "canonicalize,fold-affine,restore,bake", verify="each")
    assert report.ok
    assert [(item.site, item.code) for item in report.passes[1].declined] == [("norm", "NF110")]


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Any:
        return torch.ops.acme.fused_norm(x, self.weight, self.bias, 1e-5)


def test_a_fused_norm_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments have the names of the plain form, or its defaults; the axes are those of its weight."""
    monkeypatch.setitem(
        TABLE, "acme::fused_norm", Op(norm=Norm("layer-norm", "shape", "layer_norm"))
    )
    module = Compose(
        lambda m, x: m.head(m.last((y := m.stem(x)) + m.inner(m.norm(y)))),
        stem=nn.Linear(5, WIDTH),
        norm=Fused(),
        inner=nn.Linear(WIDTH, WIDTH),
        last=nn.LayerNorm(WIDTH),
        head=nn.Linear(WIDTH, 3),
    )
    graph = normfold.capture(perturb(module), (torch.randn(2, 4, 5),))
    result, report = normfold.run(
        graph, "canonicalize,fold-affine,center-stream,compress-stream,restore,bake", verify="each"
    )
    assert report.ok
    assert not [item for part in report.passes for item in part.declined]
    assert "layer_norm" not in str(result.module.graph)
