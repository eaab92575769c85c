"""A traced network without ops that write, and without ops that are only other names of views and copies.

`ExportedProgram.run_decompositions` traces the whole network twice for that, two thirds of the time of a capture.
Nearly all networks need less: `relu_` is `relu` where nothing else sees the tensor that it writes into, and
`flatten` is the `view` that comes out when it is traced alone. What is not so plain raises, and torch does it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from normfold.ir.inline import NotLocal, inline, sizes_stay
from normfold.ir.input_sizes import from_inputs
from normfold.ir.provenance import copy_provenance
from normfold.ir.recurrent import is_projected
from normfold.ir.wrapped import unwrap

# Composite ops that return a view, or the tensor itself, as its sizes want it: torch replaces them, too.
_VIEWS = """
    adjoint atleast_1d atleast_2d atleast_3d broadcast_to chunk contiguous dsplit expand_as flatten hsplit
    linalg_diagonal mH mT matrix_H moveaxis movedim narrow numpy_T positive ravel reshape reshape_as split swapaxes
    swapdims tensor_split to unflatten unsafe_chunk view_as vsplit
"""
COMPOSITE_VIEWS = frozenset(_VIEWS.split())
# Composite ops that are something else in training, and which of their arguments says so.
_MODES = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5}
_OPAQUE = ("normfold",)  # namespaces whose ops stay
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def functionalise(module: fx.GraphModule) -> None:
    """Replace what writes and what is composite, in place.

    Raises:
        NotLocal: the graph holds something that only a whole trace can replace; it may be half done.
    """
    graph = module.graph
    unwrap(module)
    _require_flat(graph)
    composite = _without_writes(graph)
    known: dict[Any, fx.Graph] = {}
    for node in list(graph.nodes):
        if node in composite or _stands_for_others(node):
            inline(graph, node, {}, _may_not_come, known)
    from_inputs(graph)
    graph.eliminate_dead_code()


def _require_flat(graph: fx.Graph) -> None:
    """Refuse graphs within the graph, and LSTMs with projections, which are rewritten in a trace."""
    for node in graph.nodes:
        tensor = node.op != "get_attr" or isinstance(node.meta.get("val"), Tensor)
        nested = isinstance(node.target, torch._ops.HigherOrderOperator)
        if nested or not tensor or node.op in ("call_module", "call_method") or is_projected(node):
            raise NotLocal(node.name)


def _without_writes(graph: fx.Graph) -> set[fx.Node]:
    """Replace the ops that write; returns those of the new ones that are composite where they write."""
    writes, composite = _Writes(graph), set[fx.Node]()
    for node in list(graph.nodes):
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
            new = writes.without(node)
            if _is_composite(target):
                composite.add(new)
    return composite


def _stands_for_others(node: fx.Node) -> bool:
    """True for an op that is to be traced alone, false for one that stays.

    Raises:
        NotLocal: neither.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace in _OPAQUE:
        return False
    name = target._schema.name.rpartition("::")[2]
    if target.namespace == "aten" and name in _MODES:
        place = _MODES[name]
        if len(node.args) <= place or node.args[place] is not False:
            raise NotLocal(node.name)
        return True
    if not _is_composite(target):
        return False
    if target.namespace == "aten" and name in COMPOSITE_VIEWS:
        return True
    aliases = [*target._schema.arguments, *target._schema.returns]
    if target.namespace != "aten" or any(item.alias_info is not None for item in aliases):
        raise NotLocal(node.name)
    return False


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), _COMPOSITE)


def _may_not_come(node: fx.Node) -> bool:
    """True for what may not come of a trace: it would have to be replaced again."""
    return isinstance(node.target, torch._ops.OpOverload) and (
        node.target.namespace != "aten" or node.target._schema.is_mutable
    )


class _Writes:
    """Ops that write into the tensor that they read first, as ops that return a new one."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.place = {node: place for place, node in enumerate(graph.nodes)}
        self.storages: dict[fx.Node, set[int]] = {}
        self.sharing: dict[int, list[fx.Node]] = {}
        for node in graph.nodes:
            self.storages[node] = {*_storages(node)}
            for storage in self.storages[node]:
                self.sharing.setdefault(storage, []).append(node)

    def without(self, node: fx.Node) -> fx.Node:
        """The op that returns what this one writes, in its place.

        Raises:
            NotLocal: another tensor shares the memory and is read later, or there is no such op.
        """
        written = node.args[0]
        target = _pure(node.target)
        if target is None or not isinstance(written, fx.Node):
            raise NotLocal(node.name)
        self._require_alone(node, written)
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, node.args, node.kwargs)
        copy_provenance(node, new)
        new.meta["val"] = _value(new)
        old, made = node.meta["val"], new.meta["val"]
        if not isinstance(made, Tensor) or made.dtype != old.dtype or made.shape != old.shape:
            raise NotLocal(
                node.name
            )  # an op that writes keeps the type, and what it returns may not
        at = self.place[node]
        self.place[new], self.storages[new] = at, self.storages[node]
        for storage in self.storages[node]:
            self.sharing[storage].append(new)
        node.replace_all_uses_with(new)
        written.replace_all_uses_with(new, lambda user: self.place.get(user, -1) > at)
        self.graph.erase_node(node)
        return new

    def _require_alone(self, node: fx.Node, written: fx.Node) -> None:
        at = self.place[node]
        shared = self.storages.get(written, set())
        if not shared or shared != self.storages[node]:
            raise NotLocal(node.name)
        for other in (item for storage in shared for item in self.sharing[storage]):
            if other.op != "call_function":
                raise NotLocal(node.name)  # what the caller gave, or a parameter
            if other is written or self.place[other] >= at or self._are_apart(other, written):
                continue
            if any(self.place.get(user, at) >= at for user in other.users):
                raise NotLocal(node.name)

    def _are_apart(self, one: fx.Node, other: fx.Node) -> bool:
        """True for views of two pieces of one split."""
        pieces = self._pieces(one)
        return any(pieces.get(split, at) != at for split, at in self._pieces(other).items())

    def _pieces(self, node: fx.Node) -> dict[fx.Node, Any]:
        """The splits behind a view, and which of their pieces it is of."""
        found: dict[fx.Node, Any] = {}
        while node.args and isinstance(source := node.args[0], fx.Node):
            if self.storages.get(source) != self.storages.get(node):
                break
            if node.target is operator.getitem:
                found[source] = node.args[1]
            node = source
        return found


def _storages(node: fx.Node) -> Iterator[int]:
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()._cdata


def _pure(target: Any) -> torch._ops.OpOverload | None:
    """The op that returns what ``target`` writes into its first argument alone."""
    schema = target._schema
    writes = [item.alias_info is not None and item.alias_info.is_write for item in schema.arguments]
    space, _, name = schema.name.partition("::")
    if space != "aten" or not name.endswith("_") or name.startswith("__") or name == "copy_":
        return None
    if not writes[0] or any(writes[1:]) or len(schema.returns) != 1:
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    found = getattr(packet, schema.overload_name or "default", None)
    if found is None or found._schema.is_mutable:
        return None
    same = [item.name for item in found._schema.arguments] == [
        item.name for item in schema.arguments
    ]
    return found if same else None


def _value(node: fx.Node) -> Any:
    """The fake value of a call by those of its operands."""
    values = {source: source.meta["val"] for source in node.all_input_nodes}
    mode = next(value.fake_mode for value in values.values() if isinstance(value, FakeTensor))
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    try:
        with sizes_stay(mode), enable_python_dispatcher(), mode, torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise NotLocal(node.name) from error
