"""Where a result leaves the original: errors of what leaves each module, in torch and in the file's runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.provenance import enclosing, module_path, source_line
from normfold.judge.comparison import distance
from normfold.judge.inputs import cases
from normfold.judge.matching import GraphNetwork, Matching, limit_of, network_of
from normfold.report.layers import Layer, LayerReport
from normfold.targets.feeds import in_its_types
from normfold.targets.probes import with_layers
from normfold.targets.runtime import RuntimeSession


def compare_layers(original: Graph, result: Graph | Path, seed: int = 0) -> LayerReport:
    """Compare what leaves each module that is in both, on one random input.

    Args:
        original: as captured.
        result: a graph, or an ONNX file that normfold wrote, which onnxruntime runs without optimisations.

    Raises:
        UsageError: the file does not say which modules its nodes are from.
    """
    (case,) = cases(original, seed, kinds=("random",))[:1]
    nodes = _leaving(original)
    reference = _watched(original, nodes.values(), case.leaves, Float64())
    own = _watched(original, nodes.values(), case.leaves, Domain())
    if isinstance(result, Graph):
        kind, mine = "torch", _leaving(result)
        values = _watched(result, mine.values(), case.leaves, Domain())
        got = {path: values[node] for path, node in mine.items() if node in values}
    else:
        kind, got = "onnxruntime-none", _of_file(result, case.leaves)
    errors: dict[str, tuple[float, float, float]] = {}
    for path, node in nodes.items():
        if path in got and got[path].shape == reference[node].shape:
            before, error = (distance(reference[node], y)[0] for y in (own[node], got[path]))
            errors[path] = (before, error, limit_of(reference[node], own[node]))
    agreeing = [nodes[path] for path, (_, error, limit) in errors.items() if error <= limit]
    if len(agreeing) < len(errors):  # ops that are in no module of their own may agree as well
        leaves = [leaf for leaf in case.leaves if isinstance(leaf, Tensor)]
        matched = Matching(GraphNetwork(original), network_of(result), leaves).partner
        agreeing += [node for node in original.nodes if node.name in matched]
    behind = _made_of(agreeing)
    layers = []
    for path, (before, error, limit) in errors.items():
        node = nodes[path]
        op = f"{op_name(node)} {source_line(node)}".strip()
        other = "other" if node in behind else "exceeds"
        state: Any = "agrees" if error <= limit else other
        layers.append(Layer(path, op, before, error, limit, state))
    return LayerReport(kind, tuple(layers))


def _leaving(graph: Graph) -> dict[str, fx.Node]:
    """What leaves each module, by the module's path: the result of the last op in it, where it is floats."""
    last: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function" and not is_static(node):
            last |= dict.fromkeys(enclosing(module_path(node)), node)
    floats = {path: node for path, node in last.items() if _is_floats(node)}
    order = {node: at for at, node in enumerate(graph.nodes)}
    return dict(sorted(floats.items(), key=lambda item: order[item[1]]))


def _is_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _watched(
    graph: Graph, nodes: Iterable[fx.Node], leaves: tuple[Any, ...], domain: Domain
) -> dict[fx.Node, Tensor]:
    wanted, seen = set(nodes), dict[fx.Node, Tensor]()

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted:
            seen[node] = value.clone()  # a later op may write into it

    Evaluator(graph.module, domain, watch)(*leaves)
    return seen


def _of_file(path: Path, leaves: tuple[Any, ...]) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        copy, names = with_layers(path, Path(folder))
        session: Any = RuntimeSession(copy, "none")
        run = in_its_types(session.run, session.signature())
        outputs = run([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        values = dict(zip(session.output_names, outputs, strict=True))
    return {module: values[name] for module, name in names.items()}


def _made_of(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Everything that some nodes are made of."""
    seen: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        fresh = set(stack.pop().all_input_nodes) - seen
        seen |= fresh
        stack += fresh
    return seen
