"""Which format each layer gets: the choice on the frontier that a target of size, latency or accuracy picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.job import Quantize
from normfold.ops.linear import linear_of
from normfold.ops.table import row_of
from normfold.progress import Listener
from normfold.ranges.allocate import Choice, within
from normfold.ranges.calibration import Calibrated
from normfold.ranges.mixed import (
    BLOCK,
    FLOAT,
    SIMULATED,
    Allocation,
    Cost,
    allocate,
    executed,
    pipeline,
    size,
)
from normfold.ranges.sensitivity import Layer, joint_harm, sensitivities
from normfold.report.quantization import MixedReport
from normfold.rewrite import parse, run_pipeline
from normfold.steps.latency import layer_times, time_graph

_MEASURED = 7  # choices of which the whole network is run
Formats = Callable[[Layer], Sequence[int]]
Judge = Callable[[dict[str, int]], float]


def choose(
    calibrated: Calibrated,
    options: Quantize,
    max_drop: float | None,
    judge: Judge,
    say: Listener,
) -> MixedReport:
    """Measure every layer in every format, and pick a choice from the frontier.

    Args:
        judge: points of accuracy that the integer network loses with these bits.

    Raises:
        UsageError: the cheapest choice costs more than the target. That every choice loses more than the limit
            is for the report to say.
    """
    graph, inputs = calibrated.graph, calibrated.inputs
    formats: Formats = _simulated
    tables = 0
    if not options.simulate:
        formats, tables = _beside_tables(graph)
    blocks = 0 if options.simulate else BLOCK
    layers = sensitivities(graph, inputs, formats, blocks, say)
    unit, fixed = "bytes", float(tables)
    cost: Cost = size
    if options.target_latency is not None:
        unit = "ms"
        cost, fixed = _latencies(graph, layers, say)
    found = allocate(layers, formats, cost)
    budget = _budget(options, layers, tables)
    choice = _picked(found, max_drop, budget, fixed, unit, judge)
    bits = found.bits(choice)
    shown = _spread(found.choices, choice)
    tried = (_lowered(graph, found.bits(item), options.simulate) for item in shown)
    harms = joint_harm(graph, tried, inputs)
    return MixedReport(
        unit=unit,
        budget=budget,
        cost=choice.cost + fixed,
        harm=choice.harm,
        divergence=harms[shown.index(choice)][0],
        bits=bits,
        frontier=tuple((item.cost + fixed, item.harm) for item in found.choices),
        measured=tuple((item.cost + fixed, *harm) for item, harm in zip(shown, harms, strict=True)),
        layers=tuple((layer.path, layer.weights, dict(layer.harm)) for layer in found.layers),
    )


def _spread(choices: Sequence[Choice], chosen: Choice) -> list[Choice]:
    """Both ends, some in between, and the one that was made, cheapest first."""
    last = len(choices) - 1
    places = {round(last * at / (_MEASURED - 1)) for at in range(_MEASURED)}
    return [choices[at] for at in sorted(places | {choices.index(chosen)})]


def _lowered(graph: Graph, bits: dict[str, int], simulate: bool) -> Graph:
    text = pipeline(bits, simulate)
    return run_pipeline(graph, parse(f"{text},bake"))[0] if text else graph


def _simulated(layer: Layer) -> Sequence[int]:
    return SIMULATED


def _beside_tables(graph: Graph) -> tuple[Formats, int]:
    """The formats that runtimes execute, 8 bits for a head that is tied to a table of embeddings, and how many
    weights the tables have that no layer is tied to: they have 8 bits, a byte each."""
    found = [linear_of(node) for node in graph.nodes if row_of(node).lookup]
    tables = {linear.weight: linear.weight.meta["val"].numel() for linear in found if linear}
    tied = {
        reader
        for table in tables
        for reader in table.users
        if not row_of(reader).lookup and linear_of(reader) is not None
    }
    alone = {table: size for table, size in tables.items() if not tied & set(table.users)}

    def formats(layer: Layer) -> Sequence[int]:
        return (8,) if layer.node in tied else executed(layer)

    return formats, sum(alone.values())


def _budget(options: Quantize, layers: Sequence[Layer], tables: int) -> float | None:
    if options.target_latency is not None:
        return options.target_latency
    target = options.target_size
    weights = tables + sum(layer.weights for layer in layers)
    return target * weights if target and target <= 1 else target


def _picked(
    found: Allocation,
    max_drop: float | None,
    budget: float | None,
    fixed: float,
    unit: str,
    judge: Judge,
) -> Choice:
    """The least harmful choice within the budget; with a limit on the loss the cheapest that keeps it."""
    allowed = list(found.choices)
    if budget is not None:
        best = within(allowed, budget - fixed)
        if best is None:
            raise UsageError(
                f"the network does not fit into {budget:,.4g} {unit}",
                found=f"the cheapest choice of formats takes {allowed[0].cost + fixed:,.4g}",
                hint="convolutions and tables of embeddings have 8 bits or more, matrices 4: that is what "
                "runtimes execute",
            )
        allowed = allowed[: allowed.index(best) + 1]
    if max_drop is None:
        return allowed[-1]
    low, high = 0, len(allowed) - 1  # loss falls along the frontier, as far as harm ranks it
    if judge(found.bits(allowed[high])) > max_drop:
        return allowed[high]  # the report says that the limit is missed
    while low < high:
        middle = (low + high) // 2
        if judge(found.bits(allowed[middle])) <= max_drop:
            high = middle
        else:
            low = middle + 1
    return allowed[low]


def _latencies(graph: Graph, layers: Sequence[Layer], say: Listener) -> tuple[Cost, float]:
    """Milliseconds of a layer in a format, and of everything that is not a layer."""
    times = layer_times(graph.module, layers, executed, say)
    whole = time_graph(graph)
    fixed = max(0.0, whole - sum(times[layer.path, FLOAT] for layer in layers))

    def cost(layer: Layer, bits: int) -> float:
        return times[layer.path, bits]

    return cost, fixed
