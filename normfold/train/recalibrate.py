"""Statistics of BatchNorms from samples of where the network will run, before anything is folded.

    adabn    the samples' own (Li et al., arXiv 1603.04779), over all of them at once
    alpha    w source + (1 - w) samples for mean and variance alike, w the source's share (alpha-BN, arXiv
             2110.04065; the code of some later papers calls 1 - w alpha)
    prior    w = N / (N + n) for n samples, as if the source had been N more (Schneider et al., arXiv 2006.16971)

Front to back: what a norm reads has been normalised by the new statistics of the norms in front of it, as in one
batch of all samples. Variances are unbiased, as those that training keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from normfold.domains.batches import Batches, Parts
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, argument_index
from normfold.ir.provenance import layer_name
from normfold.job import Recalibrate
from normfold.ops.table import norm_of
from normfold.report.recalibration import NormShift, RecalibrationReport

_WIDER = " In float32 (`.float()`) it holds more, and `--precision fp16` writes half precision"


def recalibrated(
    graph: Graph, batches: Sequence[Sequence[Tensor]], step: Recalibrate
) -> tuple[Graph, RecalibrationReport]:
    """A copy of a captured graph whose BatchNorms have other running statistics, and how far those are away.

    The copy shares all other tensors, and has no original.

    Args:
        batches: flat inputs of the graph.

    Raises:
        UsageError: there is no BatchNorm with statistics of its own.
    """
    graph = graph.copy()
    graph.original = None
    nodes = [node for node in graph.nodes if _is_frozen(node)]
    readers = Counter(_buffers(node) for node in nodes)
    wanted = [node for node in nodes if readers[_buffers(node)] == 1]
    if not wanted:
        raise UsageError(
            "there is no BatchNorm to recalibrate",
            found="every one is called several times"
            if nodes
            else "no norm has running statistics",
            hint="leave out `--recalibrate`; `normfold inspect MODEL` lists the norms",
        )
    rows = sum(len(leaves[0]) for leaves in batches)
    blended = _Blended(set(wanted), step, rows)
    Evaluator(graph.module, blended)(*zip(*batches, strict=True))
    for node in wanted:
        for name, value in zip(_buffers(node), blended.made[node], strict=True):
            owner, _, leaf = name.rpartition(".")
            tensors = graph.module.get_submodule(owner)._buffers
            old = tensors[leaf]
            assert old is not None
            tensors[leaf] = stored = value.to(old.dtype)
            if not bool(stored.isfinite().all()):
                raise UsageError(
                    "the samples have statistics that the network cannot hold",
                    where=layer_name(node),
                    found=f"`{leaf}` up to {float(value.abs().max()):.3g}, in {_short(old.dtype)}",
                    hint="are the samples scaled as the network reads them?"
                    + (_WIDER if old.dtype.itemsize < 4 else ""),
                )
    shifts = [blended.shifts[node] for node in wanted]
    several = sorted({layer_name(node) for node in nodes if node not in blended.made})
    report = RecalibrationReport(
        str(step.method),
        step.share_of_source(rows),
        step.moments,
        rows,
        tuple(shifts),
        tuple(several),
    )
    graph.notes = [*graph.notes, *report.notes()]
    return graph, report


def source_statistics(graph: Graph, changed: Graph) -> dict[str, Tensor]:
    """Buffers of a graph that are others in a copy of it, by their names in the network."""
    mine = dict(graph.module.named_buffers())
    theirs = dict(changed.module.named_buffers())
    return {
        graph.own_names.get(name, name): value
        for name, value in mine.items()
        if name in theirs and theirs[name] is not value
    }


def _is_frozen(node: fx.Node) -> bool:
    """True for a BatchNorm of activations that uses running statistics which are buffers."""
    if not norm_of(node, "batch") or is_static(node) or argument(node, "training", False):
        return False
    pair = (argument(node, "running_mean"), argument(node, "running_var"))
    return all(isinstance(part, fx.Node) and part.op == "get_attr" for part in pair)


def _buffers(node: fx.Node) -> tuple[str, str]:
    return str(argument(node, "running_mean").target), str(argument(node, "running_var").target)


class _Blended(Batches):
    """All batches at once through a network whose BatchNorms take new statistics when their turn comes."""

    def __init__(self, norms: set[fx.Node], step: Recalibrate, rows: int) -> None:
        super().__init__(Domain())
        self.norms, self.step, self.weight = norms, step, step.share_of_source(rows)
        self.made: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self.shifts: dict[fx.Node, NormShift] = {}

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node in self.norms and isinstance(args[0], Parts):
            places = [argument_index(node, name) for name in ("running_mean", "running_var")]
            old = [args[place].double() for place in places]
            new, count = _moments(args[0].values)
            self.shifts[node] = _shift(node, old, new, count)
            blended = [
                self.weight * a + (1 - self.weight) * b if part in ("both", mine) else a
                for a, b, mine in zip(old, new, ("mean", "variance"), strict=True)
                for part in (self.step.moments,)
            ]
            self.made[node] = (blended[0], blended[1])
            given = list(args)
            for place, value in zip(places, blended, strict=True):
                given[place] = value.to(args[place].dtype)
            args = tuple(given)
        return super().run(node, args, kwargs)


def _moments(values: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """Mean and unbiased variance of each channel over all batches, in float64, and the values of a channel."""
    flat = [part.transpose(0, 1).flatten(1) for part in values]
    count = sum(part.shape[1] for part in flat)
    mean = torch.stack([part.sum(1, dtype=torch.float64) for part in flat]).sum(0) / count
    squares = [((part.double() - mean.unsqueeze(1)) ** 2).sum(1) for part in flat]
    return [mean, torch.stack(squares).sum(0) / max(1, count - 1)], count


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shift(node: fx.Node, old: Sequence[Tensor], new: Sequence[Tensor], count: int) -> NormShift:
    eps = float(argument(node, "eps"))
    deviation = (old[1] + eps).sqrt()
    ratio = ((new[1] + eps) / (old[1] + eps)).sqrt()
    return NormShift(
        layer_name(node),
        count,
        float(((new[0] - old[0]).abs() / deviation).median()),
        float(ratio.median()),
    )
