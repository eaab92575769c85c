"""Trainable norms in a graph: the module keeps parameters and statistics, the graph its eval-mode affine.

The affine is written as parameter expressions on the module's own tensors, by tracing `OfflineNorm.affine`:
what training changes in the module changes the graph, and folding needs no further step.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from normfold.ir import Graph, Site
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, is_symbolic, shape_of
from normfold.ir.sites import norm_sites
from normfold.nn import KINDS as KINDS_BY_NAME
from normfold.nn import OfflineNorm, PRepBN
from normfold.ops.table import Kind, is_norm, row_of
from normfold.report.reasons import Reason
from normfold.rewrite.base import Decline
from normfold.rewrite.calibration import Fit, measure
from normfold.rewrite.rewriter import Rewriter

# PowerNorm computes its group scaling at run time: it would not fold away
KINDS = {name: kind for name, kind in KINDS_BY_NAME.items() if kind.preset}


@dataclass(frozen=True)
class Slot:
    """A LayerNorm in a graph: its node, what it gives with its gain and bias, and its sites."""

    node: fx.Node
    result: fx.Node
    sites: tuple[Site, ...]

    @property
    def source(self) -> fx.Node:
        """What it reads now: a norm in front of it may have been replaced since."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def path(self) -> str:
        return self.sites[0].path if self.sites else self.node.name

    @property
    def obstacle(self) -> Decline | None:
        """Why no affine per channel can take its place; None where one can."""
        width = self.node.meta["val"].shape[-1]
        if len(argument(self.node, "normalized_shape")) != 1:
            return Decline(Reason.NOT_PER_CHANNEL, self.node, "it runs over several axes")
        if is_symbolic(width):
            return Decline(Reason.NOT_PER_CHANNEL, self.node, "its width differs at run time")
        return Decline(Reason.CONSTANT_NORM, self.node) if int(width) == 1 else None

    @property
    def per_channel(self) -> bool:
        return self.obstacle is None


def slots(graph: Graph) -> list[Slot]:
    """Every LayerNorm of a graph, in order."""
    return [
        _slot(node) for node in graph.nodes if is_norm(node, "layer-norm") and not is_static(node)
    ]


def selected(slot: Slot, patterns: Sequence[str]) -> bool:
    """True if a site of the slot has a path that some pattern matches, or there are no patterns."""
    return not patterns or any(
        fnmatch.fnmatchcase(site.path, pattern) for site in slot.sites for pattern in patterns
    )


def _slot(node: fx.Node) -> Slot:
    """The norm with the gain and bias that canonicalize has split off, where nothing else reads it."""
    users, last = list(node.users), len(shape_of(node)) - 1
    own = len(users) == 1 and row_of(users[0]).kind is Kind.AFFINE and users[0].args[3] == last
    sites = norm_sites(node)
    return Slot(node, users[0] if own else node, sites)


def fits(graph: Graph, found: Sequence[Slot], ridge: float) -> list[Fit]:
    """The nearest affine of each norm on ``graph.samples``; nothing where there are none."""
    return measure(graph, [(slot.source, slot.result) for slot in found], ridge)


def offline_norm(graph: Graph, kind: str, slot: Slot, fit: Fit) -> OfflineNorm:
    """The module that takes the place of a LayerNorm, started at its nearest affine."""
    norm, result = slot.node, slot.result
    value = result.meta["val"]
    module = KINDS[kind](int(value.shape[-1]), device=value.device, dtype=value.dtype)
    split = result is not norm
    gain = result.args[1] if split else argument(norm, "weight")
    bias = result.args[2] if split else argument(norm, "bias")
    ones = torch.ones(module.features)
    gain, bias = (
        _value(graph, part, default).to(value.device, value.dtype)
        for part, default in ((gain, ones), (bias, 0 * ones))
    )
    module.replaced = (gain, bias, float(argument(norm, "eps")))
    if isinstance(module, PRepBN):  # at lambda = 1 it is the norm that it replaces
        with torch.no_grad():
            module.ln_weight.copy_(gain)
            module.ln_bias.copy_(bias)
            module.mix.zero_()  # what it is in training is a schedule's business
        module.ln_eps = module.replaced[2]
    module.start(fit.scale, fit.shift, fit.mean, fit.mean_square)
    return module.eval()


def write_affine(rewriter: Rewriter, norm: OfflineNorm, path: str) -> tuple[fx.Node, fx.Node]:
    """Register ``norm`` under ``path`` and write its affine: scale and shift as parameter expressions."""
    rewriter.graph.trainable[path] = norm
    tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}

    def affine(*values: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip((f"norm.{name}" for name in tensors), values, strict=True))
        result: tuple[Tensor, Tensor] = torch.func.functional_call(_Affine(norm), state)
        return result

    with torch.no_grad():
        traced = make_fx(affine)(*(value.detach() for value in tensors.values()))
    names, known = iter(tensors), dict[fx.Node, fx.Node]()
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            name = next(names)
            if node.users:
                known[node] = rewriter.attribute(f"{path}.{name}", tensors[name])
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: known[source])
            known[node] = rewriter.expression(node.target, *args, **kwargs)
        elif node.op == "output":
            scale, shift = (known[value] for value in node.args[0])
    return scale, shift


class _Affine(nn.Module):
    def __init__(self, norm: OfflineNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.norm.affine()


def _value(graph: Graph, node: Any, default: Tensor) -> Tensor:
    return graph.value(node) if isinstance(node, fx.Node) else default
