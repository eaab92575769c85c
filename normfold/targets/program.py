"""From a rewritten graph to an ExportedProgram, without tracing it again where that is possible."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export import graph_signature as sig
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.utils import _pytree as pytree

from normfold.errors import ExportError, UsageError
from normfold.ir.expressions import fetch
from normfold.ir.graph import Graph
from normfold.ir.inline import NotLocal
from normfold.ir.provenance import module_path
from normfold.ir.recurrent import decomposed, free_length
from normfold.ops.integer_ops import UNSTORED
from normfold.targets.expand import expand


class LiftedProgram(ExportedProgram):
    """An exported program that is decomposed op by op, in place.

    Capture has functionalised the graph already, and retracing every op to find nearly the same ops again is
    a fifth of the time of an ONNX export. The exporter hands over the table of everything that it cannot
    translate: only what the graph holds of that is expanded.

    Attributes:
        forms: writes ops in the forms that the file wants them in, those too that come of an expansion.
    """

    forms: Callable[[fx.Graph], None] | None = None

    def run_decompositions(
        self, decomp_table: dict[Any, Callable[..., Any]] | None = None, **kwargs: Any
    ) -> ExportedProgram:
        """This program with the ops of ``decomp_table`` expanded where they stand, or traced again."""
        if not decomp_table:
            return self._traced(decomp_table, **kwargs)
        program: ExportedProgram = self
        try:
            expanded = expand(self.graph, decomp_table)
        except NotLocal:
            program, expanded = self._traced(decomp_table, **kwargs), 1
        if expanded and self.forms is not None:
            self.forms(program.graph)
            expand(program.graph, decomp_table)
        program.graph_module.recompile()
        return program

    def _traced(
        self, table: dict[Any, Callable[..., Any]] | None, **kwargs: Any
    ) -> ExportedProgram:
        trace = super().run_decompositions
        # a graph holds no projections any more, which is what other decompositions are for
        return decomposed(self, lambda _: trace(table, **kwargs))


class _NotLiftable(Exception):
    """The graph has something that only torch.export itself can describe."""


def exported_program(graph: Graph, *, retrace: bool = False) -> ExportedProgram:
    """The graph as an `ExportedProgram` that shares its parameters.

    The program is put together from the graph's own nodes and fake values; where that cannot be done (inputs
    that are not tensors, higher-order ops), or with ``retrace``, ``torch.export.export`` traces it again.

    Raises:
        UsageError: the graph has values on grids that are not stored as integers.
        ExportError: torch.export refused the graph.
    """
    _require_stored(graph)
    if not retrace:
        try:
            return _lift(graph)
        except _NotLiftable:
            pass
    try:
        with torch.no_grad(), free_length():
            return torch.export.export(
                graph.module,
                graph.args,
                graph.kwargs,
                dynamic_shapes=_dynamic_shapes(graph),
                strict=False,
            )
    except Exception as error:  # torch.export raises dozens of types
        raise ExportError(
            "torch.export refused the rewritten graph",
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
            hint="this is a bug in a pass: `normfold bisect` finds which one",
        ) from error


def _require_stored(graph: Graph) -> None:
    """Refuse what no runtime executes: a value on a grid is stored as integers, or is not written."""
    found = next((node for node in graph.nodes if node.target in UNSTORED), None)
    if found is not None:
        raise UsageError(
            "the graph has values on grids that are not stored as integers",
            where=module_path(found) or found.name,
            hint="put `bake` behind the passes that quantise; activations of fewer than 8 bits cannot be stored",
        )


def with_tensors_only(graph: Graph) -> Graph:
    """The graph, or a copy that returns a tuple of its tensors where it returns other things, too."""
    output = next(node for node in graph.nodes if node.op == "output")
    leaves = pytree.tree_leaves(output.args[0])
    tensors = tuple(leaf for leaf in leaves if _is_tensor(leaf))
    if len(tensors) == len(leaves):
        return graph
    graph = graph.copy()
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(leaf for leaf in pytree.tree_leaves(output.args[0]) if _is_tensor(leaf)),)
    codegen: Any = graph.module.graph._codegen
    spec = pytree.tree_structure(output.args[0])
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    graph.module._out_spec = spec
    graph.recompile()
    return graph


def _dynamic_shapes(graph: Graph) -> Any:
    """What was asked for at the capture, in the order of the inputs where these have new names (``*args``)."""
    shapes = graph.dynamic_shapes
    names = inspect.signature(graph.module.forward).parameters
    if not isinstance(shapes, dict) or set(shapes) <= set(names):
        return shapes
    groups = [value if isinstance(value, tuple) else (value,) for value in shapes.values()]
    return tuple(shape for group in groups for shape in group)


def _lift(graph: Graph) -> LiftedProgram:
    """Turn ``get_attr`` nodes into inputs of a flat graph and describe them in a signature."""
    in_spec = getattr(graph.module, "_in_spec", None)
    if in_spec is None:
        raise _NotLiftable("no input structure")
    lifted, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    inputs: list[sig.InputSpec] = []
    state: dict[str, Tensor] = {}
    taken = {node.name for node in graph.nodes if node.op == "placeholder"}
    by_target: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        target = str(node.target)
        if target not in by_target:
            value = fetch(graph.module, target)
            if not isinstance(value, Tensor) or not isinstance(node.meta.get("val"), Tensor):
                raise _NotLiftable(target)
            by_target[target] = _placeholder(lifted, node, f"p_{target}".replace(".", "_"), taken)
            kind = sig.InputKind.BUFFER
            if isinstance(value, nn.Parameter):
                kind = sig.InputKind.PARAMETER
            argument = sig.TensorArgument(by_target[target].name)
            persistent = None if kind is sig.InputKind.PARAMETER else True
            inputs.append(sig.InputSpec(kind, argument, target, persistent))
            state[target] = value
        copies[node] = by_target[target]
    user_inputs: list[Any] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = _placeholder(lifted, node, node.name, set())
            user_inputs.append(_input(node))
            inputs.append(sig.InputSpec(sig.InputKind.USER_INPUT, user_inputs[-1], None))
        elif node.op == "call_function":
            if "val" not in node.meta:
                if node.users:
                    raise _NotLiftable(node.name)
                continue  # guards and assertions
            copies[node] = lifted.node_copy(node, copies.__getitem__)
        elif node.op == "call_module":
            if node.users:
                raise _NotLiftable(node.name)
        elif node.op == "output":
            leaves, out_spec = pytree.tree_flatten(node.args[0])
            if not all(_is_tensor(leaf) for leaf in leaves):
                raise _NotLiftable("an output is not a tensor")
            lifted.output(tuple(copies[leaf] for leaf in leaves)).meta.update(node.meta)
    user_outputs: list[Any] = [sig.TensorArgument(copies[leaf].name) for leaf in leaves]
    outputs = [sig.OutputSpec(sig.OutputKind.USER_OUTPUT, name, None) for name in user_outputs]
    out_spec = getattr(graph.module, "_out_spec", out_spec)
    call = ModuleCallSignature(user_inputs, user_outputs, in_spec, out_spec)
    return LiftedProgram(
        root={},
        graph=lifted,
        graph_signature=sig.ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints=_ranges(graph),
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=(graph.args, graph.kwargs),
    )


def _input(node: fx.Node) -> sig.TensorArgument | sig.ConstantArgument:
    """A tensor, or a plain value that the network was captured with and no longer reads."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return sig.TensorArgument(node.name)
    if node.users or not isinstance(value, bool | int | float | str | None):
        raise _NotLiftable(node.name)
    return sig.ConstantArgument(node.name, value)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)


def _placeholder(lifted: fx.Graph, node: fx.Node, name: str, taken: set[str]) -> fx.Node:
    while name in taken:
        name = f"{name}_"
    taken.add(name)
    made = lifted.placeholder(name)
    made.meta["val"] = node.meta.get("val")
    return made


def _ranges(graph: Graph) -> dict[Any, Any]:
    ranges: dict[Any, Any] = {}
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                known = size.node.shape_env.var_to_range
                ranges |= {s: known[s] for s in size.node.expr.free_symbols if s in known}
    return ranges
