"""Leave in floats what integers make slower on this machine, by measurement; and remember what was decided.

The network in floats and the one in integers are written and timed in turn. Where a cut over their profiles
(`normfold.steps.slower`) finds layers that would be faster in floats, a third file has them so, and counts if it
is faster than the second; if the floats are faster than the better of the two, the network stays in floats.
Nothing is decided where the 95 % interval of a ratio holds 1. The decision goes into the file of facts beside the
result; a later run of the same network, target and machine takes it from there, and writes the same file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import LoadError
from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.facts import Fact
from normfold.ir.graph import op_name, shape_of
from normfold.ir.provenance import layer_name
from normfold.job import Quantize
from normfold.judge.bench import measure
from normfold.judge.bench_inputs import Inputs
from normfold.judge.pairs import in_onnxruntime
from normfold.ops.integers import plan
from normfold.progress import silent
from normfold.ranges import sidecar
from normfold.report.machine import processor
from normfold.report.quantization import LayerTime, Placement
from normfold.report.timing import Timing
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.integers import IntegerForms
from normfold.steps.pipelines import About, pipeline, with_floats
from normfold.steps.quantize import Made
from normfold.steps.slower import every_group, slower_in_integers
from normfold.steps.work import Work
from normfold.target import Target, grids_of
from normfold.targets.floats import widened
from normfold.targets.onnx import export_onnx
from normfold.targets.profile import Profile, profile

_ROUNDS, _SECONDS = 12, 1.0  # of a timing
_WORTH = 0.02  # share of a run that leaving layers in floats must promise before it is tried
_ATTEMPTS = 2  # before a network stays in floats: a busy moment spoils a profile, and its cut


@dataclass(frozen=True)
class Decided(Fact):
    """What was decided for this network, on its first input; one entry for every target and machine."""

    kind_name: ClassVar[str] = "placement"
    of_numbers: ClassVar[bool] = False
    kept: ClassVar[bool] = True

    entries: tuple[Placement, ...]


def applies(step: Quantize) -> bool:
    """True for what is timed: 8 bits everywhere, where nobody asked for formats by layer."""
    return step.scheme in ("int8", None) and not step.mixed and step.activation_bits == 8


def place(
    graph: Graph, step: Quantize, target: Target, work: Work, earlier: Path
) -> tuple[Placement | None, Made | None]:
    """What runs in floats of a calibrated graph on a target.

    Args:
        earlier: the file of facts that a run before this one may have left.

    Returns:
        The decision, None where nothing is known and the target's runtime is not here; and the integer network
        where it has been made on the way.
    """
    made: Made | None = None
    network, machine = (
        _fingerprint(graph, pipeline(step, target.name, About.of(graph))),
        _machine(),
    )
    known = [
        entry
        for entry in _known(graph, earlier)
        if (entry.target, entry.network) == (target.name, network)
    ]
    mine = [entry for entry in known if entry.machine == machine or not target.times_here]
    if mine:
        found = replace(mine[-1], reused=True)
    elif target.times_here:
        work.tell("timing integers against floats", target.name)
        found, made = _measured(graph, step, target)
        found = replace(found, network=network, machine=machine)
    else:
        return None, None
    others = [entry for entry in known if entry.machine != found.machine]
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            facts.put(node, Decided((*others, replace(found, reused=False))))
            break
    return found, made


def _measured(graph: Graph, step: Quantize, target: Target) -> tuple[Placement, Made | None]:
    """Write, profile and time the network in floats, in integers, and with layers left in floats."""
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    text = pipeline(step, target.name, About.of(graph))
    on_weights, _, rest = text.partition(",quantize-activations")
    weights, passes = run_pipeline(graph, parse(on_weights))
    whole, others = run_pipeline(weights, parse(f"quantize-activations{rest}"))
    made: Made | None = (whole, [*passes, *others])
    IntegerForms().run(weights)
    found = plan(weights, grids_of(target.name))
    with tempfile.TemporaryDirectory() as folder:

        def write(name: str, network: Graph) -> Path:
            path = Path(folder) / f"{name}.onnx"
            export_onnx(widened(network, target)[0], path, target=target)
            return path

        floats, integers = write("floats", graph), write("integers", whole)
        best, timing = integers, _time(floats, integers, tensors)
        left: tuple[tuple[str, ...], ...] = ()
        for attempt in range(_ATTEMPTS):
            before, after = profile(floats, tensors), profile(integers, tensors)
            choice = slower_in_integers(weights, found, before, after)
            if choice.saves > _WORTH * timing.b_seconds and not choice.every:
                network, _ = run_pipeline(with_floats(graph, choice.layers), parse(text))
                mixed = write(f"mixed{attempt}", network)
                if _time(best, mixed, tensors).faster:
                    best, left, timing = mixed, choice.groups, _time(floats, mixed, tensors)
            slower = timing.interval[0] > 1
            if not slower:
                break
        if slower:
            left = every_group(weights, found)
    placement = Placement(
        target.name,
        ratio=timing.ratio,
        interval=timing.interval,
        whole=slower,
        layers=tuple(_layer_time(group, before, after) for group in left),
    )
    return placement, None if left else made


def _layer_time(group: tuple[str, ...], floats: Profile, integers: Profile) -> LayerTime:
    def spent(times: Mapping[str, float]) -> float:
        return sum(times.get(layer, 0.0) for layer in group)

    whole = spent(integers.layers) + spent(integers.conversions)
    return LayerTime(group, whole, spent(floats.layers))


def _time(a: Path, b: Path, tensors: list[Tensor]) -> Timing:
    with in_onnxruntime(
        (a, b), Inputs(), threads=None, provider="cpu", say=silent, tensors=tensors
    ) as pair:
        return measure(pair, _ROUNDS, _SECONDS)


def _known(graph: Graph, earlier: Path) -> list[Placement]:
    """Decisions that came with the network, and those that an earlier run left where this one will write."""
    found = [
        entry for _, fact in facts.known(graph.module.graph, Decided) for entry in fact.entries
    ]
    if earlier.is_file():
        twin = graph.copy()
        try:
            sidecar.restore(twin, earlier)
        except LoadError:  # this run will write another in its place
            return found
        found += [
            entry for _, fact in facts.known(twin.module.graph, Decided) for entry in fact.entries
        ]
    return found


def _fingerprint(graph: Graph, text: str) -> str:
    """Of ops, layers and shapes, and of what makes integers of them: all that times depend on."""
    digest = hashlib.sha256(text.encode())
    for node in graph.nodes:
        if node.op == "call_function" and not is_static(node):
            digest.update(f"{layer_name(node)} {op_name(node)} {shape_of(node)}\n".encode())
    return digest.hexdigest()[:16]


def _machine() -> str:
    """What times depend on beside the network: processor, its cores, version of the runtime."""
    return f"{processor()}, onnxruntime {version('onnxruntime')}"
