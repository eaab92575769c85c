"""Where a result leaves the original: errors of what leaves each module, in torch and in the file's runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator, Float64
from normfold.ir.expressions import is_static, made_of
from normfold.ir.graph import op_name
from normfold.ir.provenance import enclosing, module_path, source_line
from normfold.judge.comparison import distance
from normfold.judge.inputs import cases
from normfold.judge.matching import GraphNetwork, Matching, limit_of, network_of
from normfold.report.layers import Layer, LayerReport
from normfold.targets.feeds import fed
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
        names = {path: node.name for path, node in mine.items()}
    else:
        kind, (got, names) = "onnxruntime-none", _of_file(result, case.leaves)
    errors: dict[str, tuple[float, float, float]] = {}
    for path, node in nodes.items():
        if path in got and got[path].shape == reference[node].shape:
            before, error = (distance(reference[node], y)[0] for y in (own[node], got[path]))
            errors[path] = (before, error, limit_of(reference[node], own[node]))
    over = [path for path, (_, error, limit) in errors.items() if error > limit]
    others = set[str]()
    if over:
        leaves = [leaf for leaf in case.leaves if isinstance(leaf, Tensor)]
        found = Matching(GraphNetwork(original), network_of(result), leaves)
        pairs = {path: (nodes[path].name, names[path]) for path in over}
        agreeing = {node for path, node in nodes.items() if path in errors and path not in pairs}
        agreeing |= {node for node in original.nodes if node.name in found.partner}
        others = _others(original, found, pairs, agreeing)
    layers = []
    for path, (before, error, limit) in errors.items():
        op = f"{op_name(nodes[path])} {source_line(nodes[path])}".strip()
        state: Any = "agrees" if error <= limit else "other" if path in others else "exceeds"
        layers.append(Layer(path, op, before, error, limit, state))
    return LayerReport(kind, tuple(layers))


def _others(
    original: Graph, found: Matching, pairs: dict[str, tuple[str, str]], agreeing: set[fx.Node]
) -> set[str]:
    """Of the modules whose tensors do not agree, those that passes made another tensor of.

    Where outputs are wrong these are all in front of the first that stands for the original's; where none does,
    and where outputs are right, those of which something that agrees is made.
    """
    named = {node.name: node for node in original.nodes}
    behind = made_of(*agreeing)
    fallback = {path for path, (mine, _) in pairs.items() if named[mine] in behind}
    if not found.wrong:
        return fallback
    reaching = _reaching(original, agreeing)
    others = set[str]()
    for path, (mine, name) in pairs.items():
        if named[mine] in reaching and found.stands_for(mine, name):
            return others
        others.add(path)
    return fallback


def _reaching(graph: Graph, stops: set[fx.Node]) -> set[fx.Node]:
    """What an output is made of by a way on which none of ``stops`` is."""
    seen: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node not in stops and (node.op == "output" or seen.intersection(node.users)):
            seen.add(node)
    return seen


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


def _of_file(path: Path, leaves: tuple[Any, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What leaves each module, and its name in the file."""
    with tempfile.TemporaryDirectory() as folder:
        copy, names = with_layers(path, Path(folder))
        session: Any = RuntimeSession(copy, "none")
        run = fed(session)
        outputs = run([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        values = dict(zip(session.output_names, outputs, strict=True))
    return {module: values[name] for module, name in names.items()}, names
