"""restore: what is left of a channel affine goes back into its norm, or becomes one native op.

g norm(x) + b       -> norm(x; weight=g, bias=b)
a x + b, axis 1     -> batch_norm(x; weight=a, bias=b, mean=0, var=1, eps=0) where a batch norm was
a x + b, elsewhere  -> x * a + b with a, b shaped to broadcast
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from normfold.ir import Graph, facts
from normfold.ir.graph import argument, argument_index, shape_of
from normfold.ir.sites import AffineOf, affine_sites
from normfold.ir.states import State
from normfold.ops.table import Kind, norm_of, row_of
from normfold.rewrite import Decline, Exactness, Match, Pass, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class Restore(Pass):
    """Put remaining affines back into native ops.

    Options:
        native: write a full affine that came from a batch norm as one batch_norm op (true), or as
            multiplication and addition (false).

    Exact:    up to rounding.
    Declines: nothing.
    """

    name: ClassVar[str] = "restore"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    ends: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    native: bool = True

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in list(graph.module.graph.nodes):
            if row_of(node).kind is Kind.AFFINE:
                yield Match(node, affine_sites(node))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        x, scale, shift, dim = match.node.args
        assert isinstance(x, fx.Node) and isinstance(dim, int)
        if _takes_back(x, match.node, dim, scale):
            whole = shift is None or _has_bias(x)
            text = "back into its norm" if whole else "gain back into its norm, bias added"
            return match.planned("affine" if whole else "gain", text)
        full = scale is not None and shift is not None
        if self.native and dim == 1 and _was_batch_norm(match) and full:
            return match.planned("batch-norm", "batch_norm")
        return match.planned("arithmetic", "multiply and add")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node = match.node
        x = node.args[0]
        assert isinstance(x, fx.Node)
        scale, shift = _in_type_of(x, node, rewriter)
        if match.plan in ("affine", "gain"):
            rewriter.set_argument(x, argument_index(x, "weight"), scale)
        if match.plan == "affine":
            if _has_bias(x):
                rewriter.set_argument(x, argument_index(x, "bias"), shift)
            rewriter.replace(node, x)
        elif match.plan == "batch-norm":
            _carry(_write_batch_norm(node, rewriter), match)
        else:
            if match.plan == "gain":
                rewriter.set_argument(node, 1, None, same=True)
            _carry(_write_arithmetic(node, rewriter), match)
        rewriter.record(f"{match.path}: {match.detail}")


def _takes_back(x: fx.Node, affine: fx.Node, dim: int, scale: object) -> bool:
    norm = norm_of(x, "shape", "channels")
    if norm is None or norm.plain or len(x.users) != 1 or (scale is None and not _has_bias(x)):
        return False
    if norm.over == "shape" and len(argument(x, "normalized_shape")) != 1:
        return False
    own = len(shape_of(x)) - 1 if norm.over == "shape" else 1
    return dim == own and affine in x.users


def _has_bias(norm: fx.Node) -> bool:
    return any(spec.name == "bias" for spec in norm.target._schema.arguments)  # type: ignore[union-attr]


def _was_batch_norm(match: Match) -> bool:
    return any(site.kind == "batch-norm" for site in match.sites)


def _carry(new: fx.Node, match: Match) -> None:
    facts.put(new, AffineOf(match.sites))


def _in_type_of(x: fx.Node, affine: fx.Node, rewriter: Rewriter) -> tuple[Any, Any]:
    """Scale and shift of an affine; other passes may have made them wider than what they are of."""
    dtype = x.meta["val"].dtype
    scale, shift = (
        rewriter.cast(part, dtype) if isinstance(part, fx.Node) else part
        for part in affine.args[1:3]
    )
    return scale, shift


def _write_batch_norm(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    x: Any = node.args[0]
    scale, shift = _in_type_of(x, node, rewriter)
    like = {"dtype": x.meta["val"].dtype}
    size = [shape_of(scale)[0]]
    mean = rewriter.expression(aten.full.default, size, 0.0, **like)
    variance = rewriter.expression(aten.full.default, size, 1.0, **like)
    new = rewriter.insert_after(
        node, aten.batch_norm.default, x, scale, shift, mean, variance, False, 0.1, 0.0, False
    )
    rewriter.replace(node, new)
    return new


def _write_arithmetic(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    x, dim = node.args[0], node.args[3]
    assert isinstance(x, fx.Node) and isinstance(dim, int)
    scale, shift = _in_type_of(x, node, rewriter)
    shape = [-1] + [1] * (len(shape_of(node)) - 1 - dim)
    for vector, op in ((scale, aten.mul.Tensor), (shift, aten.add.Tensor)):
        if isinstance(vector, fx.Node):
            x = rewriter.insert_before(
                node, op, x, rewriter.expression(aten.reshape.default, vector, shape)
            )
    rewriter.replace(node, x)
    return x
