"""Half precision: weights and activations in another type, judged in its arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.job import Cast
from normfold.judge.inputs import TYPICAL, cases
from normfold.report import Precision
from normfold.report.events import Rewritten
from normfold.steps.work import Work

# |y - r| / |r| that a network in half precision may be off by: five to ten times what sound networks show
BUDGETS = {"float16": 0.02, "bfloat16": 0.1}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cast(step: Cast, graph: Graph, work: Work) -> Graph:
    """The graph in another precision, judged; files are then judged by ``work.half_budget``.

    Where the graph holds nothing of another type, and needs nothing else, it is given back as it is.
    """
    from normfold.targets.typed import lower

    assert step.precision is not None
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
    work.record.emit(Precision(name, typed.islands))
    sites = tuple(work.record.report().sites)
    work.record.emit(Rewritten((), sites, typed.graph.parameter_bytes()))
    if work.verifier is not None:
        work.record.emit(work.verifier.half(name, typed.graph, work.half_budget))
    return typed.graph


def _float_types(node: Any) -> set[torch.dtype]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}
