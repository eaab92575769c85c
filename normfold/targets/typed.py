"""Strongly typed graphs: weights and activations in half precision, float32 where it must be.

TensorRT takes the types of the graph as they are, so precision is decided here. An op stays in float32 only if
what was measured says that half precision cannot hold it: a value that it reads or makes, a number that it
computes with, or the squares that a norm sums. Values that come from integers alone (position tables, masks)
are made in float32 and rounded where they meet activations.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.domains.shapes import Shapes
from normfold.errors import UsageError
from normfold.ir import facts
from normfold.ir.expressions import fetch, is_static
from normfold.ir.graph import Graph, argument, op_name
from normfold.ir.provenance import module_path, place_of
from normfold.ops.integer_ops import dequantize
from normfold.ops.linear import linear_of
from normfold.ops.reads import producer, reads_shape_only
from normfold.ops.table import Kind, kind_of, row_of
from normfold.report import Island
from normfold.targets.attention import write_attention
from normfold.targets.calls import WrittenFor, call, loosen_views, state_eps
from normfold.targets.magnitudes import MASKED, Extent, measure

MARGIN = 4.0  # inputs that were not tried may be larger than those that were
_REAL = {"number", "Optional[number]", "float", "Optional[float]", "Tensor", "Optional[Tensor]"}
_aten = torch.ops.aten


@dataclass(frozen=True)
class Typed:
    """A graph in half precision, and what stayed in float32.

    ``largest`` is the largest magnitude among what is computed in ``dtype``, on the inputs that were given, and
    ``at`` the module and the line where.
    """

    graph: Graph
    dtype: torch.dtype
    islands: tuple[Island, ...]
    largest: float = 0.0
    at: str = ""


def lower(
    graph: Graph,
    dtype: torch.dtype,
    inputs: Sequence[Sequence[Any]],
    keep: Sequence[str] = (),
    islands: bool = True,
) -> Typed:
    """A copy of a baked graph whose weights and activations are ``dtype``; inputs and outputs keep their types.

    Args:
        graph: baked; attention is written out as plain ops first, since its products may overflow too.
        dtype: ``torch.float16`` or ``torch.bfloat16``; ``torch.float32`` for a network captured in one of them.
        inputs: flat input tuples to measure magnitudes on.
        keep: patterns (``*``, ``?``) of module paths, ops or nodes that stay in float32.
        islands: False leaves out what the measurement asks for, not what ``keep`` names.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    result = graph.copy()
    write_attention(result.module)
    loosen_views(result.module.graph)
    result.recompile()
    extents = measure(result.module, inputs)
    typing = _Typing(result, dtype, extents, islands)
    typing.choose(keep)
    largest, at = typing.largest()
    typing.write()
    result.recompile()
    return Typed(result, dtype, tuple(typing.islands), largest, at)


class _Typing:
    def __init__(
        self, graph: Graph, dtype: torch.dtype, extents: dict[fx.Node, Extent], measured: bool
    ) -> None:
        self.graph, self.dtype, self.extents, self.measured = graph, dtype, extents, measured
        self.limits = torch.finfo(dtype)
        self.wide: set[fx.Node] = set()  # nodes that are run in float32
        self.islands: list[Island] = []
        self._shapes = Shapes.of(*graph.nodes)
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    # -- the choice ---------------------------------------------------------------------------------

    def choose(self, keep: Sequence[str]) -> None:
        tables, unmatched = _tables(self.graph), set(keep)
        for node in self.graph.nodes:
            if not _is_typed(node):
                continue
            whole = producer(node)
            if whole is not node:  # a part of a tuple is what the tuple is
                if whole in self.wide:
                    self.wide.add(node)
                continue
            names = (module_path(node), op_name(node), node.name)
            origin = facts.get(node, WrittenFor)
            known = (*names, origin.op, origin.name) if origin is not None else names
            wanted = {text for text in keep if any(fnmatch.fnmatchcase(n, text) for n in known)}
            unmatched -= wanted
            why = f"kept by `{min(wanted)}`" if wanted else ""
            if not why and self.measured and node not in tables:
                why = self._too_large(node)
            if why:
                self.islands.append(Island(*names, why))
            if why or node in tables or not _can_be_half(node):
                self.wide.add(node)
        for node in self.graph.nodes:  # weights are dequantised in the type of what reads them
            if node.target is dequantize and is_static(node) and self.wide.issuperset(node.users):
                self.wide.add(node)
        if unmatched:
            raise UsageError(
                "nothing is called so that could stay in float32",
                found=", ".join(f"`{text}`" for text in sorted(unmatched)),
                hint="patterns match module paths (`blocks.3.*`), ops (`softmax`) or nodes; "
                "`normfold inspect MODEL --graph` shows them",
            )

    def largest(self) -> tuple[float, str]:
        """The largest value or square of what is run in the type, and where it is."""
        held = {
            node: max(extent.largest, extent.square)
            for node, extent in self.extents.items()
            if _is_typed(node) and node not in self.wide and not is_static(node)
        }
        if not held:
            return 0.0, ""
        node = max(held, key=held.__getitem__)
        return held[node], place_of(node)

    def _too_large(self, node: fx.Node) -> str:
        """Why half precision cannot run an op, or nothing."""
        most, extent = self.limits.max / MARGIN, self._extent(node)
        if extent.square > most:
            return f"squares up to {extent.square:.3g}"
        if extent.power < self.limits.tiny * MARGIN:
            return f"divides by the root of {extent.power:.2g}"
        if extent.largest > most:
            return f"values up to {extent.largest:.3g}"
        for source in _read(node):
            if self._extent(source).largest > most:
                return f"reads values up to {self._extent(source).largest:.3g}"
        for name, number in _numbers(node).items():
            if not self._fits(node, name, number):
                return f"computes with {number:.3g}"
        return ""

    def _fits(self, node: fx.Node, name: str, number: float) -> bool:
        """True if half precision holds a number, or another may stand for it."""
        size, row = abs(number), row_of(node)
        if size > self.limits.max and math.isfinite(size):
            fills = row.numbers == "replacements" and number <= MASKED
            return fills or row.numbers in ("limits", "compared") or self._extent(node).masked
        # there a number next to zero keeps from zero, and may be another one; elsewhere it is a factor
        keeps = row.kind is Kind.ADD or row.numbers != "operands"
        return (keeps and name != "alpha") or not 0 < size < self.limits.tiny

    def _extent(self, node: fx.Node) -> Extent:
        return self.extents.get(node, Extent())

    # -- the types ----------------------------------------------------------------------------------

    def write(self) -> None:
        nodes = list(self.graph.nodes)
        returned = [_type(leaf) for leaf in pytree.tree_leaves(nodes[-1].args)]
        self._store_parameters()
        for node in nodes:
            if _is_typed(node):
                self._write(node)
        leaves, tree = pytree.tree_flatten(nodes[-1].args)
        for place, dtype in enumerate(returned):
            if dtype is not None and _type(leaves[place]) != dtype:
                leaves[place] = self._cast(leaves[place], dtype, returned=True)
        nodes[-1].args = pytree.tree_unflatten(leaves, tree)

    def _run_in(self, node: fx.Node) -> torch.dtype:
        return torch.float32 if node in self.wide else self.dtype

    def _store_parameters(self) -> None:
        """Parameters that every reader wants in one type are stored in it."""
        readers: dict[str, list[fx.Node]] = {}
        stored: dict[tuple[int, torch.dtype], nn.Parameter] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr" and _type(node) is not None:
                readers.setdefault(str(node.target), []).append(node)
        for target, nodes in readers.items():
            users = [(node, user) for node in nodes for user in node.users]
            wanted = {_type(n) if u.op == "output" else self._run_in(u) for n, u in users}
            if len(wanted) != 1:
                continue
            (dtype,) = wanted
            assert dtype is not None
            before = fetch(self.graph.module, target)
            if (id(before), dtype) not in stored:  # one tensor may have two names
                stored[id(before), dtype] = nn.Parameter(_rounded(before.detach(), dtype), False)
            owner, _, name = target.rpartition(".")
            parent = self.graph.module.get_submodule(owner)
            if name in parent._parameters or name in parent._buffers:
                delattr(parent, name)
            setattr(parent, name, stored[id(before), dtype])
            for node in nodes:
                self._retype(node, dtype)

    def _write(self, node: fx.Node) -> None:
        dtype = self._run_in(node)
        _pin(node, dtype)
        for source in list(node.all_input_nodes):
            if _type(source) not in (None, dtype):
                node.replace_input_with(source, self._cast(source, dtype))
        self._retype(node, dtype)
        if row_of(node).move.casts and _type(node) == dtype:
            (source, *_) = node.all_input_nodes
            if _type(source) == dtype:
                node.replace_all_uses_with(source)

    def _retype(self, node: fx.Node, dtype: torch.dtype) -> None:
        self._shapes.retype(
            node,
            lambda before: dtype if before.is_floating_point and before.itemsize > 1 else before,
        )

    def _cast(self, source: fx.Node, dtype: torch.dtype, returned: bool = False) -> fx.Node:
        """``source`` in another type, made once and right behind it."""
        if (source, dtype) in self._casts:
            return self._casts[source, dtype]
        graph, before, result = self.graph.module.graph, _type(source), source
        assert before is not None
        behind = source
        while behind.next.op == "placeholder":
            behind = behind.next
        narrower = torch.finfo(dtype).max < torch.finfo(before).max
        if self._extent(source).masked and narrower and not returned:
            with graph.inserting_after(behind):
                behind = result = call(graph, source, _aten.clamp.default, source, -_fill(dtype))
        with graph.inserting_after(behind):
            result = call(graph, source, _aten.to.dtype, result, dtype)
        self._casts[source, dtype] = result
        return result


def _tables(graph: Graph) -> set[fx.Node]:
    """Ops on what comes from integers and constants alone: positions, masks."""
    found, data = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" and _type(node) is not None:
            data.add(node)
        if not _is_typed(node):
            continue
        sources = {source for source in node.all_input_nodes if _type(source) is not None}
        steps = node.target is dequantize
        if steps and is_static(node):  # a weight
            continue
        reads = steps or row_of(node).lookup or linear_of(node) or data & sources
        if reads and not is_static(node):
            data.add(node)
        elif found & sources or not sources or kind_of(node) is not Kind.MOVE:
            found.add(node)  # a parameter that is only turned and cut is still one
    return found


def _read(node: fx.Node) -> list[fx.Node]:
    """The sources whose elements an op reads."""
    lent = [source for place, source in enumerate(node.args) if reads_shape_only(node, place)]
    return [source for source in node.all_input_nodes if source not in lent]


def _numbers(node: fx.Node) -> dict[str, float]:
    """Numbers that an op computes with, by argument: neither sizes nor axes, nor an eps, which has a type."""
    specs = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else []
    wanted = {spec.name for spec in specs if str(spec.type) in _REAL and spec.name != "eps"}
    found = {name: argument(node, name) for name in wanted}
    return {n: x for n, x in found.items() if type(x) in (int, float)}


def _pin(node: fx.Node, dtype: torch.dtype) -> None:
    """Fit the types and numbers among the arguments of an op to the type that it is run in."""
    before, numbers = _type(node), _numbers(node)
    if row_of(node).numbers == "compared":
        numbers = {}

    def fit(name: str, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return dtype
        return _held(value, dtype) if name in numbers else value

    if isinstance(node.target, torch._ops.OpOverload):
        names = [spec.name for spec in node.target._schema.arguments]
        node.args = tuple(fit(name, x) for name, x in zip(names, node.args, strict=False))
        node.kwargs = {name: fit(name, value) for name, value in node.kwargs.items()}
    if before is not None:
        state_eps(node, before)


def _held(number: float, dtype: torch.dtype) -> float:
    """A number that a type holds: what stands for an infinity is finite, what keeps from zero is not zero."""
    limits, size = torch.finfo(dtype), abs(number)
    if not math.isfinite(number) or size == 0 or limits.tiny <= size <= limits.max:
        return number
    return math.copysign(_fill(dtype) if size > 1 else limits.tiny, number)


def _fill(dtype: torch.dtype) -> float:
    """What stands for an infinity: a few masks may still be added up."""
    return torch.finfo(dtype).max / MARGIN


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in another type; what stands for an infinity stays finite."""
    most = torch.finfo(dtype).max
    if tensor.numel() and not all(abs(float(x)) <= most for x in torch.aminmax(tensor)):
        beyond = (tensor.abs() > most) & tensor.isfinite()
        tensor = torch.where(beyond, tensor.sign() * _fill(dtype), tensor)
    return tensor.to(dtype)


def _can_be_half(node: fx.Node) -> bool:
    """False for complex numbers, and for graphs within the graph, whose types stay."""
    values = [pytree.tree_leaves(part.meta.get("val")) for part in (node, *node.all_input_nodes)]
    complex_ = any(isinstance(x, Tensor) and x.is_complex() for leaves in values for x in leaves)
    return isinstance(node.target, torch._ops.OpOverload) and not complex_


def _leaves(node: Any) -> list[Tensor]:
    values = pytree.tree_leaves(node.meta.get("val")) if isinstance(node, fx.Node) else []
    found = [leaf for leaf in values if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [
        leaf for leaf in found if leaf.dtype.itemsize > 1
    ]  # steps of a grid are stored, and keep their type


def _type(node: Any) -> torch.dtype | None:
    """The floating type of a value, or None."""
    found = _leaves(node)
    return found[0].dtype if found else None


def _is_typed(node: fx.Node) -> bool:
    """True for an op on tensors that reads or makes floating ones."""
    if node.op != "call_function":
        return False
    tensors = any(isinstance(x, Tensor) for x in pytree.tree_leaves(node.meta.get("val")))
    return tensors and any(_leaves(part) for part in (node, *node.all_input_nodes))
