"""Strongly typed graphs: weights and activations in half precision, float32 where it must be.

TensorRT takes the types of the graph as they are, so precision is decided here. An op stays in float32 only if
what was measured says that half precision cannot hold it: a value that it reads or makes, or the squares that a
norm sums. Values that come from integers alone (position tables, masks) are made in float32 and rounded where
they meet activations.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.export.attention import write_attention
from normfold.export.calls import call
from normfold.export.magnitudes import Extent, measure
from normfold.graph.expressions import fetch, is_static
from normfold.graph.graph import Graph, op_name
from normfold.graph.ops import linear_of
from normfold.graph.provenance import module_path
from normfold.report import Island

MARGIN = 4.0  # inputs that were not tried may be larger than those that were
_CASTS = {"to", "_to_copy", "type_as"}
_aten = torch.ops.aten


@dataclass(frozen=True)
class Typed:
    """A graph in half precision, and what stayed in float32."""

    graph: Graph
    dtype: torch.dtype
    islands: tuple[Island, ...]


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
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        inputs: flat input tuples to measure magnitudes on.
        keep: patterns (``*``, ``?``) of module paths, ops or nodes that stay in float32.
        islands: False leaves out what the measurement asks for, not what ``keep`` names.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    result = graph.copy()
    write_attention(result.module.graph)
    result.recompile()
    extents = measure(result.module, inputs)
    typing = _Typing(result, dtype, extents, islands)
    typing.choose(keep)
    typing.write()
    result.recompile()
    return Typed(result, dtype, tuple(typing.islands))


class _Typing:
    def __init__(
        self, graph: Graph, dtype: torch.dtype, extents: dict[fx.Node, Extent], measured: bool
    ) -> None:
        self.graph, self.dtype, self.extents, self.measured = graph, dtype, extents, measured
        self.limits = torch.finfo(dtype)
        self.wide: set[fx.Node] = set()  # nodes that are run in float32
        self.islands: list[Island] = []
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    # -- the choice ---------------------------------------------------------------------------------

    def choose(self, keep: Sequence[str]) -> None:
        tables, unmatched = _tables(self.graph), set(keep)
        for node in self.graph.nodes:
            if node.op != "call_function" or not _touches_floats(node):
                continue
            names = (module_path(node), op_name(node), node.name)
            wanted = {text for text in keep if any(fnmatch.fnmatch(name, text) for name in names)}
            unmatched -= wanted
            why = f"kept by `{min(wanted)}`" if wanted else ""
            if not why and self.measured and node not in tables and not is_static(node):
                why = self._too_large(node)
            if why:
                self.islands.append(Island(names[0], names[1], names[2], why))
            if why or node in tables:
                self.wide.add(node)
        if unmatched:
            raise UsageError(
                "nothing is called so that could stay in float32",
                found=", ".join(f"`{text}`" for text in sorted(unmatched)),
                hint="patterns match module paths (`blocks.3.*`), ops (`softmax`) or nodes; "
                "`normfold inspect MODEL --graph` shows them",
            )

    def _too_large(self, node: fx.Node) -> str:
        """Why half precision cannot run an op, or nothing."""
        most, extent = self.limits.max / MARGIN, self._extent(node)
        if extent.square > most:
            return f"squares up to {extent.square:.3g}"
        if extent.power < self.limits.tiny * MARGIN:
            return f"divides by the root of {extent.power:.2g}"
        if extent.largest > most:
            return f"values up to {extent.largest:.3g}"
        for source in node.all_input_nodes:
            if self._extent(source).largest > most:
                return f"reads values up to {self._extent(source).largest:.3g}"
        return ""

    def _extent(self, node: fx.Node) -> Extent:
        return self.extents.get(node, Extent())

    # -- the types ----------------------------------------------------------------------------------

    def write(self) -> None:
        nodes = list(self.graph.nodes)
        returned = {source: _type(source) for source in nodes[-1].all_input_nodes}
        self._store_parameters(returned)
        for node in nodes:
            if node.op == "output":
                self._rewire(node, returned)
            elif node.op == "call_function" and _touches_floats(node):
                self._write(node)

    def _run_in(self, node: fx.Node) -> torch.dtype:
        return torch.float32 if node in self.wide else self.dtype

    def _store_parameters(self, returned: dict[fx.Node, torch.dtype | None]) -> None:
        """Parameters that every reader wants in one type are stored in it."""
        readers: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr" and _type(node) is not None:
                readers.setdefault(str(node.target), []).append(node)
        for target, nodes in readers.items():
            users = {user for node in nodes for user in node.users}
            wanted = {
                returned[n] if u.op == "output" else self._run_in(u) for n in nodes for u in n.users
            }
            if len(wanted) != 1 or not users:
                continue
            (dtype,) = wanted
            assert dtype is not None
            value = _rounded(fetch(self.graph.module, target).detach(), dtype)
            owner, _, name = target.rpartition(".")
            parent = self.graph.module.get_submodule(owner)
            if name in parent._parameters or name in parent._buffers:
                delattr(parent, name)
            setattr(parent, name, nn.Parameter(value, requires_grad=False))
            for node in nodes:
                node.meta["val"] = _as(node.meta["val"], dtype)

    def _write(self, node: fx.Node) -> None:
        dtype = self._run_in(node)
        self._rewire(node, dict.fromkeys(node.all_input_nodes, dtype))
        node.args, node.kwargs = pytree.tree_map(
            lambda value: self._number(value, dtype), (node.args, node.kwargs)
        )
        node.meta["val"] = _as(node.meta["val"], dtype)
        source = node.args[0] if node.args else None
        if op_name(node) in _CASTS and isinstance(source, fx.Node) and _type(source) == dtype:
            node.replace_all_uses_with(source)

    def _rewire(self, node: fx.Node, wanted: Mapping[fx.Node, torch.dtype | None]) -> None:
        for source in list(node.all_input_nodes):
            dtype = wanted[source]
            if dtype is not None and _type(source) not in (None, dtype):
                node.replace_input_with(source, self._cast(source, dtype))

    def _cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        """``source`` in another type, made once and right behind it."""
        if (source, dtype) in self._casts:
            return self._casts[source, dtype]
        graph, result = self.graph.module.graph, source
        behind = source
        while behind.next.op == "placeholder":
            behind = behind.next
        with graph.inserting_after(behind):
            if self._extent(source).masked:
                half = torch.finfo(dtype).max / 2
                result = call(graph, source, _aten.clamp.default, result, -half, half)
        with graph.inserting_after(behind if result is source else result):
            result = call(graph, source, _aten.to.dtype, result, dtype)
        self._casts[source, dtype] = result
        return result

    def _number(self, value: Any, dtype: torch.dtype) -> Any:
        """Dtypes and numbers among the arguments of an op that is run in ``dtype``."""
        if isinstance(value, torch.dtype):
            return dtype if value.is_floating_point else value
        most = torch.finfo(dtype).max
        if isinstance(value, float) and math.isfinite(value) and abs(value) > most:
            return math.copysign(most / 2, value)
        return value


def _tables(graph: Graph) -> set[fx.Node]:
    """Ops on what comes from integers and constants alone: positions, masks."""
    found, data = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if _type(source) is not None]
        if node.op == "placeholder" and _type(node) is not None:
            data.add(node)
        elif node.op != "call_function" or is_static(node) or not _touches_floats(node):
            continue
        elif op_name(node) == "embedding" or linear_of(node) or data.intersection(sources):
            data.add(node)
        elif not sources or found.intersection(sources):
            found.add(node)
    return found


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in another type; what stands for an infinity stays finite."""
    most = torch.finfo(dtype).max
    if bool(((tensor.abs() > most) & tensor.isfinite()).any()):
        tensor = torch.where(tensor.isfinite(), tensor.clamp(-most / 2, most / 2), tensor)
    return tensor.to(dtype)


def _leaves(node: fx.Node) -> list[Tensor]:
    values = pytree.tree_leaves(node.meta.get("val"))
    return [leaf for leaf in values if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _type(node: fx.Node) -> torch.dtype | None:
    """The floating type of a value, or None."""
    found = _leaves(node)
    return found[0].dtype if found else None


def _touches_floats(node: fx.Node) -> bool:
    return any(_leaves(part) for part in (node, *node.all_input_nodes))


def _as(value: Any, dtype: torch.dtype) -> Any:
    """The same fake values in another floating type."""

    def turn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.dtype == dtype:
            return leaf
        with leaf.fake_mode:  # type: ignore[attr-defined]
            return leaf.to(dtype)

    return pytree.tree_map(turn, value)
