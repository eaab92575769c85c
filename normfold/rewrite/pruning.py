"""Features that can go: tensors that hold one set of them, which of them are constant, and the smaller network.

A feature is *dead* where every linear op that reads it reads a constant: its weights are zero, and what is left is
a bias on its way through the ops behind, or a zero that a gate multiplies. Readers take that into their bias:

    W x + c  with  x_d = k     ->     W' x' + (c + W_d k)        W', x' without d

A feature is *unread* where all weights that read it are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from normfold.ir.expressions import evaluate, is_static, sharers
from normfold.ir.graph import Graph, argument_index, shape_of
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.linear import Linear, linear_of, pads_with_zeros
from normfold.ops.mixing import mixed, through_mix
from normfold.ops.reads import is_tuple, operands, producer, reads_no_size, reads_shape_only, uses
from normfold.ops.table import Kind, kind_of, row_of
from normfold.report.reasons import Reason
from normfold.rewrite.absorb import linear_weight, response, set_bias
from normfold.rewrite.constants import Constant, constant_behind
from normfold.rewrite.flow import Blocked
from normfold.rewrite.narrowing import narrow_sizes
from normfold.rewrite.rewriter import Rewriter

aten = torch.ops.aten
_MIXES = (Kind.MIX, Kind.MONOTONE)


@dataclass(eq=False)
class Features:
    """Tensors that hold features of one linear op, each along one axis.

    Attributes:
        start: the op.
        ids: of each tensor, along its axis, which feature is at a place; -1 for others.
        axes: of each tensor.
        writers, readers: linear ops.
        alone: convolutions that work on each feature by itself.
        parameters: of an op, those that have a number for each feature, with their axes.
    """

    graph: Graph
    start: Linear
    ids: dict[fx.Node, Tensor] = field(default_factory=dict)
    axes: dict[fx.Node, int] = field(default_factory=dict)
    writers: dict[fx.Node, Linear] = field(default_factory=dict)
    readers: dict[fx.Node, Linear] = field(default_factory=dict)
    alone: set[fx.Node] = field(default_factory=set)
    parameters: dict[fx.Node, list[tuple[fx.Node, int]]] = field(default_factory=dict)
    _queue: list[fx.Node] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, start: Linear) -> Features:
        """All tensors that hold features of an op.

        Raises:
            Blocked: something reads or writes them that cannot do with fewer.
        """
        found = cls(graph, start)
        node = start.node
        try:
            found._add(node, layout.channel(len(shape_of(node)), start.out_dim, start.out_features))
            while found._queue:
                node = found._queue.pop()
                found._find_sources(node)
                found._find_readers(node)
        except LayoutError as error:
            raise Blocked(Reason.AXIS_MISMATCH, node, str(error)) from error
        order = {node: place for place, node in enumerate(graph.nodes)}
        found.ids = {node: found.ids[node] for node in sorted(found.ids, key=order.__getitem__)}
        return found

    @property
    def width(self) -> int:
        return self.start.out_features

    # -- what holds them ----------------------------------------------------------------------------

    def _add(self, node: fx.Node, ids: Tensor) -> None:
        ids = layout.compress(ids)
        axis = layout.axis_of(ids)
        if axis is None:
            raise LayoutError("the features lie along several axes, or one of one number")
        along = ids.reshape(-1)
        known = self.ids.get(node)
        if known is not None:
            if self.axes[node] != axis or bool(
                ((known >= 0) & (along >= 0) & (known != along)).any()
            ):
                raise LayoutError("it holds the features in two orders")
            along = torch.maximum(known, along)  # from several sides of a concatenation
        if known is None or not torch.equal(known, along):
            self.ids[node], self.axes[node] = along, axis
            self._queue.append(node)

    def _layout(self, node: fx.Node) -> Tensor:
        shape = [1] * len(shape_of(node))
        shape[self.axes[node]] = -1
        return self.ids[node].reshape(shape)

    def _find_sources(self, node: fx.Node) -> None:
        kind, ids, axis = kind_of(node), self._layout(node), self.axes[node]
        if kind is Kind.LINEAR:
            linear = linear_of(node)
            assert linear is not None
            if linear.out_dim != axis:
                raise LayoutError("a linear op mixes them")
            if _by_itself(linear):
                self.alone.add(node)
                self._add(linear.data, ids)
            elif linear.groups != 1:
                raise LayoutError("groups of them belong together")
            else:
                self._require_own(linear)
                self.writers[node] = linear
        elif kind is Kind.AFFINE:
            x, *vectors, dim = node.args
            if dim != axis:
                raise LayoutError("an affine along another axis")
            self.parameters[node] = [(part, 0) for part in vectors if isinstance(part, fx.Node)]
            self._add(x, ids)  # type: ignore[arg-type]
        elif kind is Kind.MOVE:
            self._require_movable(node, axis)
            for part, own in layout.pull(node, ids):
                if bool((own >= 0).any()):
                    self._add(part, own)
        elif kind in _MIXES:
            self._add(operands(node)[0], through_mix(node, ids))
        elif _is_elementwise(node):
            self._find_operands(node, ids)
        else:
            raise Blocked(Reason.NONLINEAR, node, "it writes the features")

    def _find_operands(self, node: fx.Node, ids: Tensor) -> None:
        """Those operands of an elementwise op that have a number for each feature."""
        mine = []
        for part in dict.fromkeys(node.all_input_nodes):
            size = shape_of(part)
            place = self.axes[node] - (len(shape_of(node)) - len(size))
            if place < 0 or size[place] == 1:
                continue
            own = layout.for_operand(ids, part)
            if is_static(part):
                mine.append((part, place))
            else:
                self._add(part, own)
        self.parameters[node] = mine

    def _find_readers(self, node: fx.Node) -> None:
        ids, axis = self._layout(node), self.axes[node]
        for use in uses(node):
            user = use.user
            if reads_shape_only(user, use.position):
                if not reads_no_size(user, use.position, axis):
                    raise LayoutError("an op asks how many there are")
                continue
            if user.op == "output":
                raise Blocked(Reason.OUTPUT_EXPOSED, node)
            kind = kind_of(user)
            linear = linear_of(user) if kind is Kind.LINEAR else None
            if linear is not None:
                if linear.data is not node or linear.in_dim != axis:
                    raise LayoutError("a linear op reads another axis")
                if _by_itself(linear):
                    self._add(user, ids)
                elif linear.groups != 1:
                    raise LayoutError("groups of them belong together")
                else:
                    self._require_own(linear)
                    self.readers[user] = linear
            elif kind is Kind.AFFINE:
                self._add(user, ids)
            elif kind is Kind.MOVE:
                pushed = layout.push(user, node, ids)
                self._add(user, pushed)
            elif kind in _MIXES:
                self._add(user, mixed(user, ids))
            elif _is_elementwise(user):
                self._add(user, layout.align(ids, len(shape_of(user))))
            else:
                raise Blocked(Reason.NONLINEAR, user, "it reads the features together")

    def _require_own(self, linear: Linear) -> None:
        others = sharers(linear.weight) - {linear.node}
        if others:
            raise Blocked(
                Reason.PARAMETER_SHARED, linear.node, f"also read by `{min(others).name}`"
            )

    def _require_movable(self, node: fx.Node, axis: int) -> None:
        """Movements need no change for fewer features, but of a size that they are given."""
        op = producer(node)
        move = row_of(op).move
        if move.sizeless or (move.sizes is not None and isinstance(op.args[move.sizes][axis], int)):  # type: ignore[index]
            return
        rank = len(shape_of(operands(node)[0]))
        kept = layout.kept_axes(op, rank)
        joined = move.joins and not is_tuple(op)
        if not joined and (kept is None or axis not in kept.values()):
            raise LayoutError(f"`{op.name}` places each of them by its number")

    # -- which of them can go -----------------------------------------------------------------------

    def dead(self) -> tuple[list[int], dict[fx.Node, Constant]]:
        """Features whose readers read constants, or have zeros for them; and what each tensor is along them."""
        constants = self._constants()
        gone = torch.full((self.width,), bool(self.readers))
        for linear in self.readers.values():
            ids, found = self.ids[linear.data], constants[linear.data]
            nothing = pads_with_zeros(linear) or linear.transposed or not linear.takes_bias
            gone[ids[(ids >= 0) & ~(found.zero if nothing else found.known)]] = False
        gone |= self._unread()
        return gone.nonzero().flatten().tolist(), constants

    def _unread(self) -> Tensor:
        """Features all of whose readers have zeros for them, at every place."""
        found = torch.full((self.width,), bool(self.readers))
        for linear in self.readers.values():
            assert linear.in_axis is not None
            zero = _all_zero(evaluate(self.graph.module, linear.weight), linear.in_axis)
            ids = self.ids[linear.data]
            found[ids[(ids >= 0) & ~zero]] = False
        return found

    def _constants(self) -> dict[fx.Node, Constant]:
        found: dict[fx.Node, Constant] = {}
        for node in self.ids:
            linear = self.writers.get(node)
            if linear is not None:
                weight = evaluate(self.graph.module, linear.weight)
                found[node] = Constant.of_writer(
                    self.graph, linear, _all_zero(weight, linear.out_axis)
                )
            else:
                found[node] = constant_behind(self.graph, node, self.axes, self.ids, found)
        return found

    # -- the smaller network ------------------------------------------------------------------------

    def prune(
        self, gone: Sequence[int], constants: dict[fx.Node, Constant], rewriter: Rewriter
    ) -> None:
        """Take features out of every tensor that holds them."""
        lost = torch.zeros(self.width, dtype=torch.bool)
        lost[list(gone)] = True
        kept = {
            node: ((ids < 0) | ~lost[ids.clamp_min(0)]).nonzero().flatten()
            for node, ids in self.ids.items()
        }
        for linear in self.readers.values():
            self._read_less(linear, kept[linear.data], constants[linear.data], rewriter)
        done: set[fx.Node] = set()
        for node, places in kept.items():
            self._narrow(node, places, rewriter)
            for step in dict.fromkeys((producer(node), node)):
                if step not in done:
                    done.add(step)
                    rewriter.infer(step)
                    rewriter.changed(step)
        for linear in self.readers.values():
            rewriter.infer(linear.node)

    def _read_less(
        self, linear: Linear, kept: Tensor, constant: Constant, rewriter: Rewriter
    ) -> None:
        """Take features out of what a linear op reads; what they were there goes into its bias."""
        assert linear.in_axis is not None
        gone = torch.ones(len(constant.known), dtype=torch.bool)
        gone[kept] = False
        out = (gone & constant.known & ~constant.zero).nonzero().flatten()
        bias, weight = None, linear_weight(linear)
        if len(out):
            part = select(rewriter, weight, linear.in_axis, out)
            bias = response(rewriter, linear, part, constant.at(rewriter, out))
            if linear.bias is not None:
                bias = rewriter.expression(aten.add.Tensor, linear.bias, bias)
        smaller = select(rewriter, weight, linear.in_axis, kept)
        rewriter.set_argument(linear.node, linear.weight_position, smaller)
        set_bias(rewriter, linear, bias)  # last: a matmul becomes a linear

    def _narrow(self, node: fx.Node, places: Tensor, rewriter: Rewriter) -> None:
        linear = linear_of(node) if kind_of(node) is Kind.LINEAR else None
        if linear is not None:
            alone = node in self.alone
            axis = 0 if alone else linear.out_axis
            weight = select(rewriter, linear_weight(linear), axis, places)
            rewriter.set_argument(node, linear.weight_position, weight)
            if linear.bias is not None:
                assert linear.bias_position is not None
                bias = select(rewriter, linear.bias, 0, places)
                rewriter.set_argument(node, linear.bias_position, bias)
            if alone:
                rewriter.set_argument(node, argument_index(node, "groups"), len(places))
            return
        for parameter, axis in self.parameters.get(node, ()):
            rewriter.replace_input(node, parameter, select(rewriter, parameter, axis, places))
        width = len(self.ids[node])
        sizes = narrow_sizes(producer(node), self.axes[node], width, len(places))
        if sizes is not None:
            rewriter.set_argument(producer(node), row_of(producer(node)).move.sizes or 1, sizes)


def select(rewriter: Rewriter, value: fx.Node, axis: int, places: Tensor) -> fx.Node:
    """Parameter expression of the places of one axis."""
    index = rewriter.constant(places, "kept")
    return rewriter.expression(aten.index_select.default, value, axis, index)


def _all_zero(weight: Tensor, axis: int) -> Tensor:
    """Of each feature along an axis of a weight, whether all its numbers are zero."""
    return (weight.movedim(axis, 0).flatten(1) == 0).all(1)


def _by_itself(linear: Linear) -> bool:
    """True for a convolution with one input and one output for each group."""
    data = shape_of(linear.data)
    own = linear.in_dim is not None and linear.groups == data[linear.in_dim]
    return linear.kernel > 0 and linear.groups > 1 and own and linear.groups == linear.out_features


def _is_elementwise(node: fx.Node) -> bool:
    row = row_of(node)
    alone = row.kind is Kind.HOMOGENEOUS or row.pointwise
    return row.kind in (Kind.ADD, Kind.PRODUCT) or (alone and len(node.all_input_nodes) == 1)


def silent(graph: Graph, linear: Linear) -> bool:
    """True if some feature of a linear op has no weight."""
    return bool(_all_zero(evaluate(graph.module, linear.weight), linear.out_axis).any())


def linears(graph: Graph) -> Iterable[Linear]:
    """The linear ops on activations, in order."""
    for node in graph.nodes:
        linear = None if is_static(node) or node.op != "call_function" else linear_of(node)
        if linear is not None:
            yield linear
