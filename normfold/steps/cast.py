"""Half precision: weights and activations in another type, judged in its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.domains.half import Strict
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.provenance import place_of
from normfold.job import Cast
from normfold.judge.half import BUDGETS
from normfold.judge.inputs import TYPICAL, cases
from normfold.report import Check, Range
from normfold.report.events import Recorder, Rewritten
from normfold.steps.work import Work

if TYPE_CHECKING:
    from normfold.targets.typed import Typed

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cast(step: Cast, graph: Graph, work: Work) -> Graph:
    """The graph in another precision, judged; files are then judged by ``work.half_budget``.

    Where the graph holds nothing of another type, and needs nothing else, it is given back as it is; where the job
    quantises too: what is beside the grids is cast when they are there (`cast_beside_grids`).
    """
    from normfold.targets.typed import lower

    assert step.precision is not None
    if work.job.quantize is not None:
        return graph
    dtype = _DTYPES[step.precision]
    same = all(_float_types(node) <= {dtype} for node in graph.nodes)
    if same and dtype is torch.float32:
        return graph
    work.tell(f"lowering to {step.precision}")
    tried = [case.leaves for case in cases(graph, work.job.source.seed, work.samples, TYPICAL)]
    typed = lower(graph, dtype, tried, step.keep_fp32)
    if same and not typed.islands:
        return graph
    name = str(dtype).removeprefix("torch.")
    budget = work.job.policy.half_budget
    half = BUDGETS.get(name, BUDGETS["float16"]) if budget is None else budget
    work.half_budget = half + (work.half_budget or 0.0)  # beside what approximate passes may cost
    sites = tuple(work.record.report().sites)
    work.record.emit(Rewritten((), sites, typed.graph.parameter_bytes()))
    check = None
    if work.verifier is not None:
        check = work.verifier.half(name, typed.graph, work.half_budget)
        work.record.emit(check)
    work.record.emit(_range(name, typed, check, tried))
    return typed.graph


def cast_beside_grids(
    step: Cast, graph: Graph, inputs: Sequence[Sequence[Any]], record: Recorder
) -> Graph:
    """A baked graph on grids with everything beside them in the precision of the step; recorded.

    Args:
        inputs: flat input tuples to measure magnitudes on.
    """
    from normfold.targets.typed import lower

    assert step.precision is not None
    dtype = _DTYPES[step.precision]
    typed = lower(graph, dtype, inputs, step.keep_fp32)
    name, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    state: Literal["ok", "failed"] = "ok" if typed.largest <= limit else "failed"
    record.emit(Range(name, state, typed.largest, limit, typed.at, islands=typed.islands))
    return typed.graph


def _range(name: str, typed: Typed, check: Check | None, tried: list[tuple[Any, ...]]) -> Range:
    """Whether the type holds the values, by the run that was judged."""
    limit, largest, at = torch.finfo(typed.dtype).max, typed.largest, typed.at
    state: Literal["ok", "failed", "not judged"] = "ok" if check is not None else "not judged"
    if check is not None and not all(math.isfinite(output.error) for output in check.outputs):
        state, largest, at = "failed", math.inf, _first_overflow(typed.graph, tried) or at
    elif check is not None and largest > limit:  # squares within a norm, which no result shows
        state = "failed"
    return Range(name, state, largest, limit, at, islands=typed.islands)


def _first_overflow(graph: Graph, inputs: list[tuple[Any, ...]]) -> str:
    """Where the first value is made that is no number; empty where none is."""
    found: list[str] = []

    def watch(node: Any, value: Any) -> None:
        for leaf in pytree.tree_leaves(value):
            real = isinstance(leaf, Tensor) and leaf.is_floating_point()
            if real and bool((leaf.isnan() | leaf.isposinf()).any()):
                found.append(place_of(node))

    for leaves in inputs:
        Evaluator(graph.module, Strict(), watch)(*leaves)
    return found[0] if found else ""


def _float_types(node: Any) -> set[torch.dtype]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}
