"""What to store in d - 1 numbers: the tensors that center-stream stores centred, and what norms make of them.

A *value* is a tensor that would have width d - 1: a centred one over the features of one axis, a norm of one,
and what movements make of that norm. It gets there by how it is made:

    writer    a linear op, an embedding: its weights are narrowed
    made      of narrow values by an op that keeps the features apart, with sizes and parameters narrowed
    norm      an RMS norm of a narrow value
    border    in any other way: one explicit op behind it, where narrow readers want it

and so do its readers: values, norms and linear ops read it as it is, all others behind one explicit op that
brings back d features. What hangs together is converted if it has more norms than explicit ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx

from normfold.ir import facts
from normfold.ir.expressions import is_static
from normfold.ir.graph import Graph, argument, shape_of
from normfold.ir.sites import NormOf, norm_sites
from normfold.ops import groups as grouping
from normfold.ops.layout import LayoutError
from normfold.ops.reads import is_tuple, operands, producer, uses
from normfold.ops.table import Kind, is_norm, kind_of
from normfold.report.reasons import Reason
from normfold.rewrite.base import Decline
from normfold.rewrite.basis import Basis
from normfold.rewrite.centering import holds_affine
from normfold.rewrite.narrowing import (
    narrow_sizes,
    reader_of,
    readers_of_store,
    sees_no_features,
    weight_of,
)
from normfold.rewrite.rewriter import Rewriter
from normfold.spaces.carriers import IN_ORDER, made_into, made_of, one_axis
from normfold.spaces.writers import Writer, writer_of


@dataclass(eq=False)
class Value:
    """A tensor to be stored in d - 1 numbers along ``axis``, times 1 / ``factor`` (see `Basis.factor`).

    ``parts`` are the values that it is made of; ``constants`` its parameters, each with its axis of features.
    ``inside`` and ``outside`` list who reads it narrow and who must see all d features; `linear` ops are inside.
    """

    node: fx.Node
    axis: int
    basis: Basis
    factor: float = 1.0
    how: Literal["writer", "made", "normalised", "border"] = "border"
    writer: Writer | None = None
    parts: list[Value] = field(default_factory=list)
    constants: list[tuple[fx.Node, int]] = field(default_factory=list)
    inside: list[fx.Node] = field(default_factory=list)
    outside: list[fx.Node] = field(default_factory=list)

    @property
    def ops(self) -> int:
        """Explicit ops that it needs."""
        return int(bool(self.inside)) if self.how == "border" else int(bool(self.outside))


@dataclass
class Region:
    """Values that are converted together, in graph order."""

    values: list[Value]

    @property
    def norms(self) -> list[fx.Node]:
        return [value.node for value in self.values if value.how == "normalised"]

    @property
    def ops(self) -> int:
        return sum(value.ops for value in self.values)


class Compression:
    """The values of a graph, and the regions that pay.

    Args:
        graph: of which nothing is changed here.
        basis: the basis for a width.
        groups: of the features of a tensor that may be stored in the basis; None for any other tensor.
    """

    def __init__(
        self,
        graph: Graph,
        basis: Callable[[int], Basis],
        groups: Callable[[fx.Node], Tensor | None],
    ) -> None:
        self.graph, self.basis, self.groups = graph, basis, groups
        self.values: dict[fx.Node, Value] = {}
        self.declined: dict[fx.Node, Decline] = {}
        self._refused: set[fx.Node] = set()  # linear ops whose weight has other readers
        for node in graph.nodes:
            if node.op == "call_function" and not is_static(node) and not is_tuple(node):
                value = self._norm(node) or self._centred(node) or self._carried(node)
                if value is not None:
                    self.values[node] = value
        while self._settle():
            pass
        self.regions = list(self._regions())

    # -- values -------------------------------------------------------------------------------------

    def _norm(self, node: fx.Node) -> Value | None:
        if not is_norm(node, "rms-norm"):
            return None
        source = self.values.get(node.args[0])  # type: ignore[arg-type]
        if source is None:
            stored = node.args[0]
            if isinstance(stored, fx.Node) and self.groups(stored) is not None:
                self.declined[node] = Decline(Reason.GROUPED_FEATURES, stored)
            return None  # else an RMSNorm from the start, which sees the mean
        sizes = [int(size) for size in argument(node, "normalized_shape")]
        if argument(node, "weight") is not None:
            self.declined[node] = holds_affine(node)
            return None
        own = sizes == [source.basis.width] and source.axis == len(shape_of(node)) - 1
        if not own or argument(node, "eps") is None:
            self.declined[node] = Decline(Reason.GROUPED_FEATURES, node)
            return None
        basis = source.basis
        return Value(node, source.axis, basis, source.basis.factor, "normalised", parts=[source])

    def _centred(self, node: fx.Node) -> Value | None:
        groups = self.groups(node)
        if groups is None or not one_axis(groups):
            return None
        (axis,) = grouping.axes(groups)
        value = Value(node, axis, self.basis(groups.shape[axis]))
        writer = writer_of(node)
        if writer is not None and writer.blocks == 1 and writer.out_dim == axis:
            value.how, value.writer = "writer", writer
        elif writer is None and self._made(value, groups):
            value.how = "made"
        return value

    def _carried(self, node: fx.Node) -> Value | None:
        """What a movement, or a mean over other axes, makes of a norm."""
        kind = kind_of(node)
        sources = operands(node) if kind in (Kind.MOVE, Kind.MIX) else []
        first = self.values.get(sources[0]) if sources else None
        if first is None:
            return None
        shape = [1] * len(shape_of(first.node))
        shape[first.axis] = first.basis.width
        groups: Tensor | None = torch.zeros(shape, dtype=torch.int64)
        assert groups is not None
        try:
            groups = made_into(node, first.node, groups, IN_ORDER)
        except LayoutError:
            return None
        if groups is None or not one_axis(groups):
            return None
        value = Value(node, grouping.axes(groups)[0], first.basis, first.factor, "made")
        return value if self._made(value, groups) and not value.constants else None

    def _made(self, value: Value, groups: Tensor) -> bool:
        """Find what a value is made of; False if something else is in it, or features are not kept apart."""
        try:
            parts = made_of(value.node, groups, IN_ORDER)
        except LayoutError:
            return False
        for operand, inner in parts:
            if not one_axis(inner):
                return False
            (axis,) = grouping.axes(inner)
            if is_static(operand):
                value.constants.append((operand, axis))
                continue
            part = self.values.get(operand)
            if part is None or (part.axis, part.factor) != (axis, value.factor):
                return False
            value.parts.append(part)
        return bool(parts)

    # -- what stays ---------------------------------------------------------------------------------

    def _settle(self) -> bool:
        """Drop what cannot or need not be narrow; True if that changed anything."""
        self._find_readers()
        return self._break_up() or self._refuse_shared() or self._drop_idle() or self._drop_dear()

    def _find_readers(self) -> None:
        for value in self.values.values():
            value.inside, value.outside = [], []
            for use in uses(value.node):
                if not sees_no_features(use, value.axis):
                    readers = value.inside if self._reads_narrow(use.user, value) else value.outside
                    if use.user not in readers:
                        readers.append(use.user)

    def _reads_narrow(self, user: fx.Node, value: Value) -> bool:
        other = self.values.get(user)
        if other is not None and value in other.parts:
            return True
        reader = reader_of(user)
        return (
            reader is not None
            and user not in self._refused
            and (reader.data, reader.dim) == (value.node, value.axis)
        )

    def _break_up(self) -> bool:
        """A value made of what is no longer one gets a border; so do all results of one op if one does."""
        changed = False
        for value in list(self.values.values()):
            whole = all(part.node in self.values for part in value.parts)
            if producer(value.node) is not value.node:
                found = [self.values.get(user) for user in producer(value.node).users]
                whole = whole and all(one is not None and one.how == "made" for one in found)
            if value.how in ("made", "normalised") and not whole:
                changed = True
                self._withdraw(value)
        return changed

    def _withdraw(self, value: Value) -> None:
        """A centred tensor may still be made narrow by an explicit op."""
        value.parts, value.constants, value.writer = [], [], None
        if self.groups(value.node) is not None and value.how != "normalised":
            value.how = "border"
        else:
            if value.how == "normalised":
                self.declined[value.node] = Decline(Reason.NO_GAIN, value.node)
            del self.values[value.node]

    def _refuse_shared(self) -> bool:
        """No weight is copied: whoever reads it must want it narrowed in the same way."""
        edits: dict[fx.Node, set[tuple[str, int]]] = {}
        for value in self.values.values():
            if value.writer is not None:
                edits.setdefault(value.node, set()).add(("out", value.writer.axis))
            for user in value.inside:
                if user not in self.values or self.values[user].writer is not None:
                    reader = reader_of(user)
                    assert reader is not None
                    edits.setdefault(user, set()).add(("in", reader.axis))
        refused = set()
        for op, axes in edits.items():
            weight = weight_of(op)
            for other in readers_of_store(weight):
                same = edits.get(other) == axes and weight_of(other) is weight
                if other is not op and not same:
                    refused.add(op)
        for op in refused:
            self._refused.add(op)
            if op in self.values and self.values[op].writer is not None:
                self._withdraw(self.values[op])
        return bool(refused)

    def _drop_idle(self) -> bool:
        """Values that nobody reads narrow; what is made by one op stays together."""
        idle: set[fx.Node] = set()
        for value in reversed(list(self.values.values())):
            if all(user in idle for user in value.inside):
                idle.add(value.node)
        for node in list(idle):
            siblings = producer(node).users if producer(node) is not node else {node: None}
            if not all(one in idle for one in siblings):
                idle.discard(node)
        for node in idle:
            if self.values[node].how == "normalised":
                self.declined[node] = self._wide_readers(self.values[node])
            del self.values[node]
        return bool(idle)

    def _drop_dear(self) -> bool:
        dear = [region for region in self._regions() if len(region.norms) <= region.ops]
        for region in dear:
            text = f"{len(region.norms)} norms would take {region.ops} explicit ops"
            grouped = next(filter(None, map(self._grouped_source, region.values)), None)
            for value in region.values:
                if value.how == "normalised":
                    decline = Decline(Reason.NO_GAIN, value.node, text)
                    if grouped is not None:
                        decline = Decline(Reason.GROUPED_FEATURES, grouped, text)
                    self.declined[value.node] = decline
                del self.values[value.node]
        return bool(dear)

    def _regions(self) -> Iterator[Region]:
        """Values that hang together: one is made of the other."""
        joined: dict[Value, list[Value]] = {value: [value] for value in self.values.values()}
        for value in self.values.values():
            for part in value.parts:
                mine, theirs = joined[value], joined[part]
                if mine is not theirs:
                    mine += theirs
                    joined.update(dict.fromkeys(theirs, mine))
        groups: dict[int, list[Value]] = {}
        for value in self.values.values():
            groups.setdefault(id(joined[value]), []).append(value)
        yield from map(Region, groups.values())

    # -- why not ------------------------------------------------------------------------------------

    def _grouped_source(self, value: Value) -> fx.Node | None:
        """A tensor with several groups of features that a border is made of."""
        for source in producer(value.node).all_input_nodes if value.how == "border" else ():
            groups = self.groups(source)
            if groups is not None and not one_axis(groups):
                return source
        return None

    def _wide_readers(self, norm: Value) -> Decline:
        grouped = next(filter(None, map(self._grouped_source, norm.parts)), None)
        if grouped is not None:
            return Decline(Reason.GROUPED_FEATURES, grouped)
        shared = [user for user in norm.outside if user in self._refused]
        if shared:
            return Decline(Reason.PARAMETER_SHARED, shared[0])
        names = ", ".join(f"`{user.name}`" for user in norm.outside) or "nothing narrow"
        text = f"it is read by {names}: one explicit op brings all features back before it"
        return Decline(Reason.NO_GAIN, norm.node, text)


# -- rewriting --------------------------------------------------------------------------------------


def narrow(value: Value, rewriter: Rewriter) -> None:
    """Make a value narrow, and let its readers read it so. Values are narrowed in graph order."""
    node, basis, axis = value.node, value.basis, value.axis
    for user in value.inside:
        reader = reader_of(user)
        if reader is not None and reader.data is node:
            weight: Any = user.args[reader.position]
            weight = basis.read(rewriter.expression, weight, reader.axis, value.factor)
            rewriter.set_argument(user, reader.position, weight)
    result = node
    if value.how == "border":
        result = basis.narrow(_After(rewriter, node), node, axis)
        rewriter.record(f"{node.name}: compressed by an op")
        for user in value.inside:
            rewriter.replace_input(producer(user), node, result)
    elif value.how == "normalised":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        eps, dtype = float(argument(node, "eps")), source.meta["val"].dtype
        result = basis.norm(partial(rewriter.insert_before, node), source, eps, dtype)
        facts.put(result, NormOf(norm_sites(node)))
        rewriter.record(f"{node.name}: norm of {basis.kept} features")
    elif value.writer is not None:
        places = [(value.writer.weight_position, value.writer.axis)]
        if value.writer.bias_position is not None and value.writer.bias is not None:
            places.append((value.writer.bias_position, 0))
        for position, along in places:
            parameter: Any = node.args[position]
            rewriter.set_argument(
                node, position, basis.narrow(rewriter.expression, parameter, along)
            )
        rewriter.record(f"{node.name}: output compressed")
    else:
        for constant, along in value.constants:
            parameter = basis.narrow(rewriter.expression, constant, along)
            rewriter.replace_input(producer(node), constant, parameter)
        if (sizes := narrow_sizes(node, axis, basis.width, basis.kept)) is not None:
            rewriter.set_argument(node, 1, sizes)
    if value.how in ("writer", "made"):
        for step in dict.fromkeys((producer(node), node)):
            rewriter.infer(step)
            rewriter.changed(step)
    if value.outside and value.how != "border":
        wide = basis.widen(_After(rewriter, result), result, axis, value.factor)
        rewriter.record(f"{node.name}: all features brought back by an op")
        for user in value.outside:
            rewriter.replace_input(producer(user), node, wide)
    if value.how == "normalised":
        rewriter.replace(node, result, same=False)


class _After:
    """Adds ops behind a node, each behind the one before."""

    def __init__(self, rewriter: Rewriter, anchor: fx.Node) -> None:
        self.rewriter, self.anchor = rewriter, anchor

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        self.anchor = self.rewriter.insert_after(self.anchor, target, *args)
        return self.anchor
