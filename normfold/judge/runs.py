"""Runs of networks on cases: in their own types, in float64, and in float64 with the errors of another type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import late
from normfold.ir.fresh import call
from normfold.judge.comparison import Outputs, tensors
from normfold.judge.inputs import Case
from normfold.ops.table import row_of

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def original_of(graph: Graph) -> Any:
    """What was captured, or the graph where that was not kept."""
    return graph.original if graph.original is not None else graph.module


def run(graph: Graph, module: Any, of: Sequence[Case]) -> list[Outputs]:
    """Outputs of a network with the inputs of ``graph``, each case on copies of it and of the inputs, which a call
    may change."""
    _, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    results = []
    with torch.no_grad():
        for case in of:
            own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in case.leaves]
            args, kwargs = pytree.tree_unflatten(own, tree)
            is_network = isinstance(module, nn.Module)
            made = call(module, *args, **kwargs) if is_network else module(*args, **kwargs)
            results.append(tensors(made))
    return results


def run_float64(graph: Graph, of: Sequence[Case]) -> list[Outputs]:
    """Outputs of a graph in float64."""
    evaluator = Evaluator(graph.module, Float64(), graph=late(graph.module.graph))
    return [tensors(evaluator(*case.leaves)) for case in of]


def run_rounded(
    graph: Graph, of: Sequence[Case], seed: int, unit: float, alike: bool = False
) -> list[Outputs]:
    """Outputs in float64, where every op errs at random by ``unit`` of each number, as kernels do; or of the size
    at which the op computes where that is larger, which is 1 for a sigmoid.

    Whole numbers are exact in every type, and stay: counts, grids, masks, zeros.

    Args:
        alike: equal numbers err alike, as those that a kernel makes of equal inputs: on a grey image every
            position does, and no mean over the positions takes that off.
    """
    random = torch.Generator().manual_seed(seed)

    def rounded(node: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        draw = (
            _drawn_by(value, random)
            if alike
            else torch.randint(0, 2, value.shape, generator=random)
        )
        size = value.abs().clamp_min(row_of(node).computed_at)
        return torch.where(
            value == value.round(), value, value + (2 * draw - 1).to(value) * size * unit
        )

    evaluator = Evaluator(graph.module, Float64(), rounded, graph=late(graph.module.graph))
    return [tensors(evaluator(*case.leaves)) for case in of]


def _drawn_by(value: Tensor, random: torch.Generator) -> Tensor:
    """0 or 1 for each number: a bit of a random multiple of its own bits in float32."""
    factor, offset = torch.randint(1, 2**31, (2,), generator=random).tolist()
    bits = value.float().contiguous().view(torch.int32).long()
    drawn: Tensor = (bits * (2 * factor + 1) + offset) >> 31 & 1
    return drawn


def called(call: Run, of: Sequence[Case]) -> list[Outputs]:
    """Outputs of anything that maps flat input tensors to flat output tensors."""
    results = []
    for case in of:
        with torch.no_grad():
            results.append(list(call([leaf for leaf in case.leaves if isinstance(leaf, Tensor)])))
    return results
