"""canonicalize: write every norm as core plus channel affine, and drop what does nothing in eval mode.

batch_norm(x)          = a x + b              a = gamma * rsqrt(var + eps)    b = beta - a * mean
layer_norm(x; g, b)    = g layer_norm(x) + b  (group_norm, instance_norm and rms_norm alike)
(x - mean(x)) / sqrt(var(x) + eps) = layer_norm(x), x / sqrt(mean(x^2) + eps) = rms_norm(x), however spelled
x * c, x + c, x - c, x / c with one number per channel c: an affine too; with one for all: a site as it is
a border of c that is assigned to slices: a padding with c
a2 (a1 x + b1) + b2    = (a2 a1) x + (a2 b1 + b2)
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from normfold.ir import Graph, Site, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.expressions import is_static
from normfold.ir.facts import Fact
from normfold.ir.graph import argument, argument_index, is_symbolic, op_name, shape_of
from normfold.ir.provenance import copy_provenance, module_path, module_type, source_line
from normfold.ir.sites import AffineOf, NormOf, affine_sites
from normfold.ir.states import State
from normfold.ir.statistics import Statistics, set_statistics, statistics_of
from normfold.ops.handwritten import (
    HandWritten,
    adds_nothing,
    one_group,
    recognise,
)
from normfold.ops.scalars import scalar_of
from normfold.ops.selection import Selection, selection_of, takes_all
from normfold.ops.table import Kind, is_copy, norm_of, row_of
from normfold.ops.writes import Border, border_of, replaced_by
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter
from normfold.rewrite.borders import write_border

aten = torch.ops.aten
_ARITHMETIC = (Kind.ADD, Kind.PRODUCT)


@dataclass(frozen=True)
class Seen(Fact):
    """A site of which nothing is to be rewritten was reported."""

    kind_name: ClassVar[str] = "seen"
    of_numbers: ClassVar[bool] = False


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Norms become core and channel affine; eval-mode identities go.

    Exact:    up to rounding, in eval mode.
    Declines: statistics-not-frozen (the norm computes them from the batch), not-per-channel.
    """

    name: ClassVar[str] = "canonicalize"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    ensures: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    def match(self, graph: Graph) -> Iterable[Match]:
        namer = _Namer(graph)
        for node in graph.module.graph.nodes:
            if node.op != "call_function":
                continue
            if facts.get(node, Seen):
                continue
            norm = norm_of(node)
            if norm_of(node, "batch") and is_static(node):
                yield Match(node, (namer.site(node, "weight-standardisation"),), "expression")
            elif is_static(node):
                continue
            elif norm_of(node, "batch"):
                yield Match(node, (namer.site(node, "batch-norm"),), "batch-norm")
            elif norm is not None and not argument(node, "use_input_stats", True):
                yield Match(node, (namer.site(node, "instance-norm"),), "batch-norm")
            elif norm is not None and not _is_core(node):
                kind = norm.kind if one_group(node) is None else "layer-norm"
                yield Match(node, (namer.site(node, kind),), "core")
            elif (found := recognise(node)) is not None:
                yield Match(node, (namer.site(node, found.kind),), "hand-written")
            elif row_of(node).kind in _ARITHMETIC and (plan := _vector_operand(node)) is not None:
                yield Match(node, (namer.site(node, "constant"),), plan)
            elif scalar_of(node) is not None and not affine_sites(node):
                yield Match(node, (namer.site(node, "constant"),), "scalar")
            elif (border := border_of(node, graph.module)) is not None:
                yield Match(node, (), border)
            elif _needs_strides(node) or _asserts(node) or _changes_nothing(node):
                yield Match(node, (), "drop")
            elif selection_of(node) is not None:
                yield Match(node, (), "part of a cat")

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if match.plan == "batch-norm" and not _frozen(match.node):
            return Decline(Reason.STATISTICS_NOT_FROZEN, match.node)
        if match.plan == "core" and _spans_axes(match.node):
            return Decline(Reason.NOT_PER_CHANNEL, match.node)
        if match.plan == "hand-written":
            found = recognise(match.node)
            assert found is not None
            detail = f"written by hand: {found.kind} over axes {found.dims}"
            return match.planned(match.plan, detail)
        if match.plan == "expression":
            detail = "normalises a weight: a parameter expression, removed by bake"
            return match.planned(match.plan, detail)
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node = match.node
        for site in match.sites:
            rewriter.graph.sites[site.path] = site
        if match.plan == "batch-norm":
            _split_batch_norm(node, rewriter, match.sites)
        elif match.plan == "core":
            node = _plain(node, rewriter)
            split = _split_norm(node, rewriter, match.sites)
            if (layer_norm := one_group(node)) is not None:
                _reroll(node, layer_norm, match.sites, rewriter)
            elif not split:
                return
        elif match.plan == "hand-written":
            found = recognise(node)
            assert found is not None, "what came before it has left a norm what it is"
            _reroll(node, found, match.sites, rewriter)
        elif match.plan == "drop":
            _drop(node, rewriter)
        elif match.plan == "part of a cat":
            part = selection_of(node)
            if part is not None:
                _read_directly(node, part, rewriter)
        elif match.plan == "expression":
            facts.put(node, Seen())
            return
        elif match.plan == "scalar":  # stays the op that it is: it has no axis of channels
            facts.put(node, AffineOf(match.sites))
            return
        elif isinstance(match.plan, Border):
            border = border_of(node, rewriter.graph.module)
            assert border is not None, "what came before it has left its parts what they are"
            write_border(node, border, rewriter)
        else:
            _write_affine(node, rewriter, match.sites, *match.plan)
        rewriter.record(f"{match.path}: {match.detail or op_name(node)}")


class _Namer:
    """Unique site paths: the module path, numbered where one module holds several norms."""

    def __init__(self, graph: Graph) -> None:
        self.seen: dict[str, int] = {}
        self.graph = graph

    def site(self, node: fx.Node, kind: str) -> Site:
        path = module_path(node) or node.name
        self.seen[path] = self.seen.get(path, 0) + 1
        if self.seen[path] > 1:
            path = f"{path}#{self.seen[path]}"
        return Site(path, kind, source_line(node), module_type(node))


def _frozen(node: fx.Node) -> bool:
    """True if a batch norm uses running statistics."""
    if argument(node, "training", False):
        return False
    return is_static(argument(node, "running_mean")) and is_static(argument(node, "running_var"))


def _split_batch_norm(node: fx.Node, rewriter: Rewriter, sites: tuple[Site, ...]) -> None:
    x, gamma, beta, mean, variance = node.args[:5]
    eps = argument(node, "eps")
    a = rewriter.expression(aten.rsqrt.default, rewriter.expression(aten.add.Tensor, variance, eps))
    if gamma is not None:
        a = rewriter.expression(aten.mul.Tensor, gamma, a)
    b = rewriter.expression(aten.neg.default, rewriter.expression(aten.mul.Tensor, mean, a))
    if beta is not None:
        b = rewriter.expression(aten.add.Tensor, beta, b)
    result = _first_result(node)
    assert isinstance(x, fx.Node)
    assert isinstance(mean, fx.Node)
    assert isinstance(variance, fx.Node)
    dim = 1 if len(shape_of(x)) > 1 else 0
    affine = rewriter.insert_after(node, channel_affine, x, a, b, dim)
    statistics = Statistics(
        sites[0].path,
        dim,
        rewriter.graph.value(mean),
        (rewriter.graph.value(variance) + eps).sqrt(),
    )
    if statistics_of(x) is None:
        set_statistics(x, statistics)
    set_statistics(affine, statistics.moved(rewriter.graph.value(a), rewriter.graph.value(b)))
    _adopt(affine, result, sites, rewriter)


def _first_result(node: fx.Node) -> fx.Node:
    if not isinstance(node.meta["val"], (tuple, list)):
        return node
    return next(
        user for user in node.users if user.target is operator.getitem and user.args[1] == 0
    )


def _adopt(affine: fx.Node, old: fx.Node, sites: tuple[Site, ...], rewriter: Rewriter) -> None:
    copy_provenance(old, affine)
    facts.put(affine, AffineOf(sites))
    rewriter.replace(old, affine)


def _plain(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    """The norm with one result, unless another op reads the mean and deviation beside it."""
    norm = norm_of(node)
    op = getattr(aten, norm.plain).default if norm is not None and norm.plain else None
    several = isinstance(node.meta["val"], (tuple, list))
    results = list(node.users) if several else [node]
    if op is None or (several and any(user.args[1] != 0 for user in results)):
        return node
    plain = rewriter.insert_after(
        node, op, *(_of_plain(node, spec) for spec in op._schema.arguments)
    )
    for result in results:
        copy_provenance(result, plain)
        rewriter.replace(result, plain)
    return plain


def _of_plain(node: fx.Node, spec: Any) -> Any:
    """What a norm gives for an argument of its plain form, which has the same name or a default."""
    name = "group" if spec.name == "num_groups" else spec.name
    if name == "normalized_shape":
        return _sizes(node)
    return argument(node, name) if _has(node, name) else spec.default_value


def _sizes(node: fx.Node) -> Any:
    """The last axes that a norm runs over: those of its weight, where no argument says it."""
    return _optional(node, "normalized_shape") or list(shape_of(argument(node, "weight")))


def _over_last(node: fx.Node) -> bool:
    return norm_of(node, "shape") is not None


def _spans_axes(node: fx.Node) -> bool:
    """True if the norm has a weight that runs over several axes: not one number per channel."""
    several = _over_last(node) and len(_sizes(node)) != 1
    return several and argument(node, "weight") is not None


def _split_norm(node: fx.Node, rewriter: Rewriter, sites: tuple[Site, ...]) -> bool:
    """True if there was an affine to split off."""
    facts.put(node, NormOf(sites))
    weight, bias = argument(node, "weight"), _optional(node, "bias")
    if (weight is None and bias is None) or isinstance(node.meta["val"], (tuple, list)):
        return False
    rank = len(shape_of(node))
    over_last = _over_last(node)
    if not all(part is None or is_static(part) for part in (weight, bias)):
        return False
    dim = rank - 1 if over_last else 1
    affine = rewriter.insert_after(node, channel_affine, node, weight, bias, dim)
    facts.put(affine, AffineOf(sites))
    rewriter.replace(node, affine, keep=(affine,))
    for name in ("weight", "bias"):
        if _has(node, name):
            rewriter.set_argument(node, argument_index(node, name), None)
    return True


def _is_core(node: fx.Node) -> bool:
    """True if an earlier run has split the affine off."""
    bare = argument(node, "weight") is None and _optional(node, "bias") is None
    return bare and facts.get(node, NormOf) is not None


def _has(node: fx.Node, name: str) -> bool:
    return any(spec.name == name for spec in node.target._schema.arguments)  # type: ignore[union-attr]


def _optional(node: fx.Node, name: str) -> Any:
    return argument(node, name) if _has(node, name) else None


def _changes_nothing(node: fx.Node) -> bool:
    if replaced_by(node) is not None:
        return True
    return is_copy(node) or adds_nothing(node) or takes_all(node)


def _asserts(node: fx.Node) -> bool:
    """True for an op without a result."""
    return node.meta.get("val") is None and row_of(node).measures == "none"


def _needs_strides(node: fx.Node) -> bool:
    """True for a view: a reshape that copies nothing."""
    return op_name(node) in ("view", "_unsafe_view")


def _drop(node: fx.Node, rewriter: Rewriter) -> None:
    if _asserts(node):
        rewriter.erase(node)
    elif _needs_strides(node):  # a view needs strides that a removed copy made; a reshape does not
        rewriter.set_call(node, aten.reshape.default, node.args, same=True)
    else:
        source = replaced_by(node) or node.args[0]
        assert isinstance(source, fx.Node)
        rewriter.replace(node, source)


def _vector_operand(node: fx.Node) -> tuple[int, int] | None:
    """(position of the activation, axis) if the other operand has one number per channel."""
    if len(node.args) < 2:
        return None
    left, right = node.args[:2]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or node.kwargs.get(
        "rounding_mode"
    ):
        return None
    for x, constant in ((left, right), (right, left)):
        if row_of(node).inverts and row_of(node).kind is Kind.PRODUCT and x is right:
            continue
        if is_static(constant) and not is_static(x) and hasattr(x.meta["val"], "shape"):
            sizes, target = shape_of(constant), shape_of(node)
            axes = [dim - len(sizes) for dim, size in enumerate(sizes) if size > 1]
            same = shape_of(x) == target and x.meta["val"].dtype == node.meta["val"].dtype
            if len(axes) == 1 and same and constant.meta["val"].is_floating_point():
                return node.args.index(x), len(target) + axes[0]
    return None


def _write_affine(
    node: fx.Node, rewriter: Rewriter, sites: tuple[Site, ...], position: int, dim: int
) -> None:
    x, constant = node.args[position], node.args[1 - position]
    vector = rewriter.expression(aten.reshape.default, constant, [-1])
    alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    row, scale, shift = row_of(node), None, None
    if row.kind is Kind.PRODUCT:
        inverse = row.inverts  # only of the constant
        scale = rewriter.expression(aten.reciprocal.default, vector) if inverse else vector
    else:
        sign = -alpha if row.inverts else alpha
        if position == 0:
            shift = vector if sign == 1 else rewriter.expression(aten.mul.Tensor, vector, sign)
        else:  # c + alpha x, c - alpha x
            size, shift = shape_of(vector)[0], vector
            like = {"dtype": vector.meta["val"].dtype}
            full = rewriter.expression(aten.full.default, [size], sign, **like)
            scale = None if sign == 1 else full
    affine = rewriter.insert_after(node, channel_affine, x, scale, shift, dim)
    _adopt(affine, node, sites, rewriter)


def _reroll(node: fx.Node, found: HandWritten, sites: tuple[Site, ...], rewriter: Rewriter) -> None:
    """Replace ``node`` by a core op: on the last axes, or on another axis between two permutes."""
    data, dtype = found.data, node.meta["val"].dtype
    if data.meta["val"].dtype != dtype:  # the product was widened by its other factor
        data = rewriter.insert_before(node, aten.to.dtype, data, dtype)
    rank = len(shape_of(node))
    sizes = [int(data.meta["val"].shape[dim]) for dim in found.dims]
    order = [dim for dim in range(rank) if dim not in found.dims] + list(found.dims)
    moved = order != sorted(order)
    if moved:
        data = rewriter.insert_before(node, aten.permute.default, data, order)
    if found.kind == "layer-norm":
        arguments: tuple[Any, ...] = (aten.layer_norm.default, data, sizes, None, None, found.eps)
    else:
        arguments = (aten.rms_norm.default, data, sizes, None, found.eps)
    core = rewriter.insert_before(node, *arguments)
    facts.put(core, NormOf(sites))
    if moved:
        back = [order.index(dim) for dim in range(rank)]
        core = rewriter.insert_before(node, aten.permute.default, core, back)
    rewriter.replace(node, core)


def _read_directly(node: fx.Node, found: Selection, rewriter: Rewriter) -> None:
    """Make a slice or select read the operand itself, or become it where it takes all."""
    size = found.operand.meta["val"].shape[found.dim]
    whole = found.end is None or (not is_symbolic(size) and found.end >= int(size))
    if op_name(node) == "select":
        new = rewriter.insert_before(node, aten.select.int, found.operand, found.dim, found.start)
    elif found.start == 0 and whole:
        new = found.operand
    else:
        end = sys.maxsize if found.end is None else found.end
        new = rewriter.insert_before(
            node, aten.slice.Tensor, found.operand, found.dim, found.start, end
        )
    if new is not found.operand:
        copy_provenance(node, new)
    rewriter.replace(node, new)
