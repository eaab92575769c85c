"""The verdict on integers: a file in its runtime, against the float original and its simulation in torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.data.metrics import Comparison, comparable
from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ops.integer_ops import dequantize, quantize
from normfold.ops.linear import linear_of
from normfold.ops.table import Kind, kind_of, row_of
from normfold.report.quantization import lost
from normfold.report.verdict import AgreementCheck, Budget

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_QUIET = 1e-30
_ORDERED = (Kind.ADD, Kind.PRODUCT, Kind.AFFINE)


@dataclass(frozen=True)
class Promise:
    """What an integer file must keep: inputs, labels, what the float original answers, and what the simulation
    does; outputs are those in floats, by batch. ``metric`` is the user's, of outputs and labels; ``scores``
    says that the first output are scores of classes, whose answers can agree; ``coarse`` that weights have so few
    bits that answers change."""

    inputs: Sequence[Sequence[Tensor]]
    labels: Tensor | None
    original: list[list[Tensor]]
    simulated: list[list[Tensor]]
    metric: str | None = None
    scores: bool = True
    coarse: bool = False

    @classmethod
    def of(
        cls,
        inputs: Sequence[Sequence[Tensor]],
        labels: Tensor | None,
        original: Graph,
        simulation: Graph,
        metric: str | None = None,
    ) -> Promise:
        """Run both networks on the inputs."""
        mine, theirs = float_outputs(simulation, inputs), float_outputs(original, inputs)
        return cls(inputs, labels, theirs, mine, metric, gives_scores(original))

    def drift(self) -> dict[str, Any]:
        """How far the simulation is from the original, with ``snr_db`` of the noisiest output."""
        found = compare(self.simulated, self.original, self.labels, self.metric, self.scores)
        return {**found, "snr_db": min(ratios(self.simulated, self.original), default=None)}

    def check(self, kind: str, artefact: str, run: Run, budget: Budget) -> AgreementCheck:
        """Run the file on the inputs, and compare."""
        start, mine = time.perf_counter(), []
        for leaves in self.inputs:
            with torch.no_grad():
                mine.append(floats(run([leaf for leaf in leaves if isinstance(leaf, Tensor)])))
        if [len(outputs) for outputs in mine] != [len(outputs) for outputs in self.original]:
            nothing = tuple(-math.inf for _ in self.original[0])
            return AgreementCheck(
                kind, artefact, 0, None, None, nothing, nothing, budget, note="other outputs"
            )
        found = compare(mine, self.original, self.labels, self.metric, self.scores)
        forfeit = forfeited(mine, self.original) if self.scores else None
        return AgreementCheck(
            kind,
            artefact,
            int(found.get("positions") or found["samples"]),
            found.get("agreement"),
            lost(found),
            tuple(ratios(mine, self.original)),
            tuple(ratios(self.simulated, self.original)),
            budget,
            time.perf_counter() - start,
            forfeited=forfeit,
        )


def compare(
    mine: Iterable[Sequence[Tensor]],
    theirs: Iterable[Sequence[Tensor]],
    labels: Tensor | None,
    metric: str | None = None,
    scores: bool = True,
) -> dict[str, Any]:
    """Drift of the first outputs, batch by batch; labels count where they are scores."""
    mine, theirs = list(mine), list(theirs)
    if not theirs[0][0].is_floating_point():  # answers themselves
        same = [a[0] == b[0] for a, b in zip(mine, theirs, strict=True)]
        count = sum(part.numel() for part in same)
        share = sum(int(part.sum()) for part in same) / max(1, count)
        return {"samples": sum(map(len, same)), "positions": count, "agreement": share}
    compared, at = Comparison(logits=scores, metric=metric), 0
    for outputs, references in zip(mine, theirs, strict=True):
        got, expected = outputs[0], references[0]
        rows = labels[at : at + len(expected)] if labels is not None else None
        at += len(expected)
        compared.add(got, expected, rows)
    return compared.drift().to_dict()


def forfeited(
    mine: Iterable[Sequence[Tensor]], theirs: Iterable[Sequence[Tensor]]
) -> tuple[float, float]:
    """What other answers cost, by the original's own probabilities, and its standard error.

    An answer is worth its probability above chance. Of what the original's answers are worth together, that share
    is lost: all of it by answers at random, little by another of two equal classes. Of a calibrated network it is
    the expected loss of accuracy above chance; any scale of the scores gives much the same.
    """
    lost, worth = [], []
    for outputs, references in zip(mine, theirs, strict=True):
        p, got = probabilities(references[0]).flatten(0, -2), outputs[0].flatten(0, -2)
        best = p.max(-1).values
        lost.append(best - p.gather(-1, got.argmax(-1, keepdim=True))[:, 0])
        worth.append(best - 1 / p.shape[-1])
    costs, values = torch.cat(lost), torch.cat(worth)
    whole = float(values.sum())
    if not whole > 0:
        return 0.0, 0.0
    share = float(costs.sum()) / whole
    error = float((costs - share * values).square().sum().sqrt()) / whole
    return share, error


def probabilities(scores: Tensor) -> Tensor:
    """Scores of classes along the last axis as probabilities, in float64: as they are, or their softmax."""
    wide = scores.double()
    given = bool((wide >= 0).all()) and bool(((wide.sum(-1) - 1).abs() < 1e-3).all())
    return wide if given else wide.softmax(-1)


def ratios(mine: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> list[float]:
    """Signal-to-noise ratio of every output in dB, over all batches; NaN where an output is not finite.

    What is infinite or NaN in both alike (a mask) is no noise.
    """
    found = []
    for place in range(len(theirs[0])):
        if not theirs[0][place].is_floating_point():
            continue
        signal = noise = 0.0
        for outputs, references in zip(mine, theirs, strict=True):
            got, expected = comparable(outputs[place], references[place])
            signal += float(expected.square().sum())
            noise += float((got - expected).square().sum())
        ratio = max(signal, _QUIET) / max(noise, _QUIET) if math.isfinite(noise) else math.nan
        found.append(10 * math.log10(ratio) if ratio == ratio else math.nan)
    return found


def gives_scores(graph: Graph) -> bool:
    """True if the first output in floats is scores of classes: a row, or a row for each token, written by a linear
    op or a softmax. Features, images and boxes have no answer that could agree."""
    leaves = pytree.tree_leaves(next(node for node in graph.nodes if node.op == "output").args)
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    first = next((node for node in nodes if node.meta["val"].is_floating_point()), None)
    if first is None or first.meta["val"].dim() not in (2, 3) or first.meta["val"].shape[-1] < 2:
        return False
    while first.op == "call_function" and first.all_input_nodes:
        sources = [node for node in first.all_input_nodes if not is_static(node)]
        if linear_of(first) is not None or row_of(first).scores:
            return True
        shifts = kind_of(first) in _ORDERED or first.target in (quantize, dequantize)
        if kind_of(first) is not Kind.MOVE and not (shifts and len(sources) == 1):
            return False
        first = sources[0]
    return False


@torch.no_grad()
def float_outputs(graph: Graph, inputs: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The outputs in floats of a graph, for each of the batches."""
    runner = fx.Interpreter(graph.module)
    runs = (runner.run(*leaves, enable_io_processing=False) for leaves in inputs)
    return [floats(pytree.tree_leaves(outputs)) for outputs in runs]


def floats(outputs: Sequence[Any]) -> list[Tensor]:
    """Those of the outputs that are tensors of floating-point numbers; where there are none, all tensors. A
    number, such as a loss, is a row of its own."""
    tensors = [torch.atleast_1d(leaf) for leaf in outputs if isinstance(leaf, Tensor)]
    return [leaf for leaf in tensors if leaf.is_floating_point()] or tensors
