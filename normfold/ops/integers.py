"""Which tensors of a graph go on a grid, so that a runtime's kernels for few bits take the ops between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import facts
from normfold.ir.expressions import is_static
from normfold.ir.facts import Fact
from normfold.ir.graph import Graph, argument, concrete, op_name, shape_of
from normfold.ops.integer_ops import dequantize, on_grid
from normfold.ops.linear import Linear, linear_of
from normfold.ops.padding import is_taken, source_of
from normfold.ops.reads import is_tuple, operands
from normfold.ops.table import Kind, bounds, kind_of, row_of
from normfold.target import Grids


@dataclass(frozen=True)
class StaysFloat(Fact):
    """An op that stays in floats: a product that spreads outliers, or what integers make slower."""

    kind_name: ClassVar[str] = "stays-float"
    of_numbers: ClassVar[bool] = False


@dataclass
class Plan:
    """What to put on grids.

    Attributes:
        linears: the ops whose weights become integers.
        tensors: activations on a grid, to the tensor whose grid it is (itself, or where its values come from).
        readers: the readers of an activation's integers; all of its readers if it has no entry.
        floats: linears whose result stays in floats.
        integer: every op that runs in integers, where these stand between integer kernels.
        constants: the parameters that sums of bytes add, by the sum: on grids of their own.
    """

    linears: list[Linear] = field(default_factory=list)
    tensors: dict[fx.Node, fx.Node] = field(default_factory=dict)
    readers: dict[fx.Node, set[fx.Node]] = field(default_factory=dict)
    floats: set[fx.Node] = field(default_factory=set)
    integer: set[fx.Node] = field(default_factory=set)
    constants: dict[fx.Node, fx.Node] = field(default_factory=dict)


def plan(graph: Graph, grids: Grids, linears: list[Linear] | None = None) -> Plan:
    """Choose the tensors around linear ops: those whose weights are integers, or the ones that are to be."""
    if linears is None:
        linears = [linear for linear in _weighted(graph) if integer_arithmetic(linear)]
    return _chained(graph, grids, linears) if grids.outputs else _inputs_only(linears, grids.sums)


def with_kernels(graph: Graph, grids: Grids) -> list[Linear]:
    """The linear ops with stored weights that kernels of a runtime take in few bits."""
    return [linear for linear in _weighted(graph) if not lacks_kernel(linear, grids)]


def _weighted(graph: Graph) -> Iterator[Linear]:
    return (linear for node in graph.nodes if (linear := weighted(node)) is not None)


def weighted(node: fx.Node) -> Linear | None:
    """A convolution or matrix product with a stored weight; an embedding is not arithmetic."""
    if node.op != "call_function" or is_static(node) or row_of(node).lookup:
        return None
    if facts.get(node, StaysFloat):
        return None
    return linear_of(node) if kind_of(node) is Kind.LINEAR else None


def lacks_kernel(linear: Linear, grids: Grids) -> str:
    """Why no kernel of a runtime takes a layer in few bits; empty if one does."""
    if grids.rounding == "e4m3" and linear.transposed:
        return "a transposed convolution has none"
    if linear.kernel and not grids.window:
        return "products of matrices alone have one, and this is a convolution"
    window = math.prod(concrete(size) for size in shape_of(linear.weight)[2:])
    if linear.kernel and window > grids.window:
        return f"a window of {window} elements, at most {grids.window} have one"
    inputs, outputs = features(linear)
    if inputs % grids.multiple or outputs % grids.multiple:
        group = " per group" if linear.groups > 1 else ""
        return (
            f"{inputs} inputs and {outputs} outputs{group}, multiples of {grids.multiple} have one"
        )
    return ""


def features(linear: Linear) -> tuple[int, int]:
    """Inputs and outputs of a layer, of each of its groups."""
    shape = shape_of(linear.weight)
    assert linear.in_axis is not None
    inputs, outputs = concrete(shape[linear.in_axis]), concrete(shape[linear.out_axis])
    if linear.transposed:
        return inputs // linear.groups, outputs
    return inputs, outputs // linear.groups


def mean_of_product(linear: Linear, mean: Tensor, weight: Tensor) -> Tensor:
    """The mean per output channel, over positions, of a linear op with this weight and no bias.

    Args:
        mean: (C,) of what it reads, the same at every position.
    """
    assert linear.in_dim is not None
    shape = list(shape_of(linear.data))
    if linear.in_dim:
        shape[0] = 1
    view = [-1 if dim == linear.in_dim else 1 for dim in range(len(shape))]
    x = mean.reshape(view).expand(shape).contiguous()
    values: dict[fx.Node, Tensor] = {linear.data: x, linear.weight: weight}
    if linear.bias is not None:
        values[linear.bias] = weight.new_zeros(shape_of(linear.bias))
    args, kwargs = fx.map_arg((linear.node.args, linear.node.kwargs), values.__getitem__)
    y: Tensor = linear.node.target(*args, **kwargs)  # type: ignore[operator]
    return y.mean([dim for dim in range(y.dim()) if dim != linear.out_dim])


def quantized_weight(linear: Linear) -> bool:
    """True if the weight is on a grid."""
    return linear.weight.target in (on_grid, dequantize)


def integer_arithmetic(linear: Linear) -> bool:
    """True if integer kernels take the weight: blocks are unpacked to floats."""
    return quantized_weight(linear) and bool(linear.weight.args[4] == 0)


def fused_output(node: fx.Node) -> fx.Node:
    """The result of an op's kernel: that of the ReLU behind it, if nothing else reads the op."""
    users = list(node.users)
    if len(users) == 1 and row_of(users[0]).integers.clips and bounds(users[0]).low >= 0:
        return users[0]
    return node


def _chained(graph: Graph, grids: Grids, linears: list[Linear]) -> Plan:
    """Integer kernels read and write integers: every tensor between them is on a grid."""
    integer = {linear.node for linear in linears}
    integer |= {node for node in graph.nodes if _glue(node, grids)}
    taken = {node for node in graph.nodes if is_taken(node)}
    while True:  # the largest set of ops that can run in integers together
        ends = {fused_output(node) for node in integer}
        out = {
            node for node in integer if weighted(node) is None and not _joined(node, integer, ends)
        }
        if not out:
            break
        integer -= out
    found, origins = Plan(linears, integer=integer), dict[fx.Node, fx.Node]()
    for node in graph.nodes:  # in graph order: shared grids are there before they are shared
        if node in integer:
            for source in _activations(node):
                origins.setdefault(source, source)
        made = node in ends and all(user in integer for user in node.users)
        start = next(
            (n for n in (node, *node.all_input_nodes) if n in integer and fused_output(n) is node),
            None,
        )
        if start is None or node in taken:
            continue
        conv = weighted(start) is not None and linear_of(start).kernel > 0  # type: ignore[union-attr]
        if made or (conv and not _is_output(node)):
            origin = _origin(start) if start is node else node
            origins[node] = origins.get(origin, origin)
        elif weighted(start) is not None:
            found.floats.add(start)
    for node in filter(adds_to_bytes, integer):
        found.constants[node] = next(filter(is_static, operands(node)))
    # the parts of a split are on its input's grid, the list of them is not
    found.tensors = {node: start for node, start in origins.items() if not is_tuple(node)}
    return found


def _glue(node: fx.Node, grids: Grids) -> bool:
    if node.op != "call_function" or is_static(node) or facts.get(node, StaysFloat):
        return False
    if bytes_of(node) is not None:
        return False
    return row_of(node).integers.kernel in grids.kernels or kind_of(node) is Kind.MOVE


def _joined(node: fx.Node, integer: set[fx.Node], ends: set[fx.Node]) -> bool:
    """True if all inputs and all readers of a glue op are in integers."""
    sources = _activations(node)
    known = (source in ends or source.op == "placeholder" or bytes_of(source) for source in sources)
    whole = len(sources) == len(operands(node)) or adds_to_bytes(node)
    if not sources or not whole or not all(known):
        return False
    readers = list(fused_output(node).users)
    return bool(readers) and all(reader in integer for reader in readers)


def bytes_of(node: fx.Node) -> fx.Node | None:
    """The bytes that a node makes floats of: they are on a grid as they are."""
    source = node.args[0] if op_name(node) == "_to_copy" else None
    if not isinstance(source, fx.Node) or source.meta["val"].dtype != torch.uint8:
        return None
    return source if node.meta["val"].dtype.is_floating_point else None


def adds_to_bytes(node: fx.Node) -> bool:
    """True for a sum of bytes and a parameter: the mean of images that is taken off."""
    sides = operands(node)
    sums = row_of(node).integers.kernel == "sum" and argument(node, "alpha") == 1
    return sums and len(sides) == 2 and any(map(is_static, sides)) and any(map(bytes_of, sides))


def _activations(node: fx.Node) -> list[fx.Node]:
    linear = weighted(node)
    sources = operands(node) if linear is None else [linear.data]
    return [source_of(source) for source in sources if not is_static(source)]


def _origin(node: fx.Node) -> fx.Node:
    """Where the values of a move come from; the node itself if it computes new ones."""
    same = kind_of(node) is Kind.MOVE or row_of(node).integers.same_grid
    sources = _activations(node)
    return sources[0] if same and len(sources) == 1 else node


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _inputs_only(linears: list[Linear], sums: bool) -> Plan:
    """Inputs of linear ops are on grids, and with ``sums`` the other side of a sum with a linear op's output."""
    found = Plan(linears)
    ops = {linear.node for linear in linears}
    for linear in linears:
        data = source_of(linear.data)
        found.tensors[data] = data
        found.readers.setdefault(data, set()).add(
            linear.node if data is linear.data else linear.data
        )
    for tensor in list(found.tensors) if sums else ():
        for user in tensor.users:
            if row_of(user).integers.kernel == "sum" and user not in ops:
                others = [side for side in operands(user) if side is not tensor]
                if len(others) == 1 and others[0] in ops and len(others[0].users) == 1:
                    found.readers[tensor].add(user)
    return found
