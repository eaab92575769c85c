"""Value ranges of tensors: from the norms' statistics, from synthesised inputs, or from the user's data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.data.samples import load_data
from normfold.domains.batches import fixed_batch, split
from normfold.domains.observed import measure
from normfold.domains.placed import device_of
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.graph import is_symbolic
from normfold.ir.intervals import Interval
from normfold.job import Quantize, Source
from normfold.ops.lookups import table_rows
from normfold.progress import Listener, Progress, silent
from normfold.ranges.analytic import assumed, derive
from normfold.ranges.clipping import clip
from normfold.ranges.prompts import prompts, reads_tokens
from normfold.ranges.ranges import merge_ranges, widen
from normfold.ranges.synthesis import (
    Bounds,
    Matching,
    Objective,
    Patches,
    PerImage,
    Pixels,
    image_shapes,
    is_bytes,
    placeholders,
    synthesise,
)
from normfold.report.quantization import Evidence
from normfold.target import grids_of

_MEASURED = 256  # rows of the user's data
_COMPARED = 32  # rows that files without ranges are judged on


@dataclass(frozen=True)
class Inputs:
    """What ranges are measured on and integer files are judged on: batches of flat inputs, labels if there are
    any, and where they are from; ``ranges`` is off where the scheme needs none, ``telling`` where they are only
    something to compare on, from which nothing may be learned."""

    batches: list[tuple[Tensor, ...]]
    labels: Tensor | None
    evidence: Evidence
    ranges: bool = True
    telling: bool = True


@dataclass(frozen=True)
class Calibrated:
    """A float network whose value ranges are known: one table, from which every target is written.

    Attributes:
        graph: its nodes carry the intervals.
        inputs, labels: what they were measured on, and what the network is compared on.
        covered: names of the tensors that the norms' statistics reach.
        measured: the inputs tell what the layers read.
    """

    graph: Graph
    inputs: list[tuple[Tensor, ...]]
    labels: Tensor | None
    evidence: Evidence
    covered: frozenset[str]
    seconds: float = 0.0
    measured: bool = True


def find_inputs(
    graph: Graph,
    options: Quantize,
    source: Source | None = None,
    *,
    normalisation: Any = None,
    say: Listener = silent,
) -> Inputs:
    """Inputs to measure a baked graph on: the user's, synthesised ones, or tokens.

    Raises:
        UsageError: nothing is known of the activations: no data, and no norm that remembers any.
    """
    source = source or Source()
    needed = options.ranged or options.correct_bias or options.migrate
    if source.data is not None:
        return replace(given_inputs(graph, source, normalisation), ranges=needed)
    if not needed and not reads_tokens(graph):  # weights need no ranges: something to compare on
        made = _like_the_example(graph, source.seed)
        return Inputs(made, None, Evidence("none needed"), ranges=False, telling=False)
    bounds = pixel_bounds(graph, options, normalisation)
    if options.evidence == "noise":
        made = _noise(graph, options, source.seed, bounds)
        return Inputs(made, None, Evidence("noise"), telling=False)
    if reads_tokens(graph):
        read = prompts(graph, source.seed, options.images)
        count = sum(len(x[0]) for x in read.batches)
        words = "text of the network's own" if read.written else "random tokens"
        return Inputs(read.batches, None, Evidence(f"{words}: {count} prompts"), needed)
    return _synthesised(graph, options, source.seed, bounds, say)


def find_ranges(
    graph: Graph,
    inputs: Inputs,
    options: Quantize,
    *,
    data: bool = False,
    seed: int = 0,
    normalisation: Any = None,
    say: Listener = silent,
) -> Calibrated:
    """Write the interval of every tensor into the nodes of ``graph``.

    Args:
        data: the inputs are the user's: what was measured on them is not widened.
        seed: of the noise that widens ranges whose statistics do not fit.
    """
    start = time.perf_counter()
    evidence, batches = inputs.evidence, inputs.batches
    if not inputs.ranges:
        return Calibrated(
            graph, batches, inputs.labels, evidence, frozenset(), measured=inputs.telling
        )
    say(Progress("finding value ranges"))
    device = device_of(options.device)
    bounds = pixel_bounds(graph, options, normalisation)
    derived = derive(graph, _interval(bounds))
    found = measure(graph, [] if options.evidence == "analytic" and not data else batches, device)
    union = options.evidence == "auto" and not data
    joined = derived.keys() - assumed(graph) if union else ()
    evidence = replace(evidence, **merge_ranges(found, derived, joined))
    if union and evidence.doubtful:
        widen(graph, _noise(graph, options, seed, bounds), device)
        text = f"{evidence.source}; its statistics do not fit, so noise widens the ranges"
        evidence = replace(evidence, source=text)
    rests = (data or options.evidence not in ("analytic", "noise")) and not evidence.doubtful
    integral = (
        options.scheme or "int8"
    ) != "fp8"  # steps of floats are relative: large values cost the others nothing
    if integral and options.clip_ranges and batches and (rests or options.activation_bits < 8):
        clip(graph, batches, grids_of("ort-x86"), options.activation_bits, device)
    names = frozenset(node.name for node in derived)
    spent = time.perf_counter() - start
    return Calibrated(
        graph, batches, inputs.labels, evidence, names, spent, measured=inputs.telling
    )


def calibrate(
    graph: Graph,
    options: Quantize,
    source: Source | None = None,
    *,
    normalisation: Any = None,
    say: Listener = silent,
) -> Calibrated:
    """`find_inputs` and `find_ranges` on a copy of a baked graph; scales are migrated by the step of a job only.

    Raises:
        UsageError: as `find_inputs`, or where scales are to be migrated.
    """
    if options.migrate:
        raise UsageError("ranges are found on a graph whose scales have been migrated already")
    graph, source = graph.copy(), source or Source()
    inputs = find_inputs(graph, options, source, normalisation=normalisation, say=say)
    graph.samples = samples_of(graph, inputs)
    return find_ranges(
        graph,
        inputs,
        options,
        data=source.data is not None,
        seed=source.seed,
        normalisation=normalisation,
        say=say,
    )


def _like_the_example(graph: Graph, seed: int) -> list[tuple[Tensor, ...]]:
    """Batches of the captured size, `_COMPARED` rows or more, to compare on: random where every input is in
    floats, as the example inputs of a network are; else the example alone."""
    leaves = tuple(pytree.tree_leaves((graph.args, graph.kwargs)))
    random = all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)
    if not random or not leaves or not all(leaf.dim() for leaf in leaves):
        return [leaves]
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(x.shape, generator=generator).to(x.dtype) for x in leaves)
        for _ in range(-(-_COMPARED // max(1, len(leaves[0]))))
    ]


def samples_of(graph: Graph, inputs: Inputs) -> list[Any]:
    """The inputs in the structure that the graph is called with."""
    tree = pytree.tree_structure((graph.args, graph.kwargs))
    return [pytree.tree_unflatten(list(x), tree) for x in inputs.batches]


def pixel_bounds(graph: Graph, options: Quantize, normalisation: Any) -> Bounds | None:
    """What valid inputs lie between: as given, as bytes, or from 0 to 1 before the network's own normalisation."""
    ends = options.pixels
    if ends is None and any(map(is_bytes, placeholders(graph))):
        ends = (0.0, 255.0)
    if ends is not None:
        low, high = (torch.tensor(float(end), dtype=torch.float32) for end in ends)
        return Bounds(low, high)
    if normalisation is None:
        return None
    mean, std = (
        torch.tensor(normalisation[key], dtype=torch.float32).reshape(-1, 1, 1)
        for key in ("mean", "std")
    )
    return Bounds(-mean / std, (1 - mean) / std)


def _interval(bounds: Bounds | None) -> Interval | None:
    return None if bounds is None else Interval(float(bounds.low.min()), float(bounds.high.max()))


def _synthesised(
    graph: Graph, options: Quantize, seed: int, bounds: Bounds | None, say: Listener
) -> Inputs:
    objective = _objective(graph, options.evidence)
    found = synthesise(
        graph, objective, options, seed, bounds, say=say, device=device_of(options.device)
    )
    if options.save_synthetic is not None:
        pairs = zip(graph.input_names, found.inputs, strict=True)
        np.savez(options.save_synthetic, **{name: x.numpy() for name, x in pairs})  # type: ignore[arg-type]
    words = {
        Matching: "synthesised",
        PerImage: "synthesised as ZeroQ does",
        Patches: "synthesised patches",
    }
    text = f"{words[type(objective)]}: {len(found.inputs[0])} images, {found.steps} steps"
    batches = split(found.inputs, fixed_batch(graph))
    if not isinstance(objective, Matching):  # on another scale
        return Inputs(batches, None, Evidence(text))
    return Inputs(batches, None, Evidence(text, found.loss, found.noise, worst=found.worst))


def _noise(
    graph: Graph, options: Quantize, seed: int, bounds: Bounds | None
) -> list[tuple[Tensor, ...]]:
    """What the synthesis starts from, in batches."""
    shapes = image_shapes(graph, options.images, options.effort)
    pairs = zip(shapes, placeholders(graph), strict=True)
    images = [
        Pixels(shape, options, seed, bounds, byte=is_bytes(node)).plain() for shape, node in pairs
    ]
    return split(images, fixed_batch(graph))


def _objective(graph: Graph, evidence: str) -> Objective:
    kinds: dict[str, Callable[[Graph], Objective]] = {"zeroq": PerImage, "patches": Patches}
    found = kinds.get(evidence, Matching)(graph)
    if not found.nodes and evidence in ("auto", "analytic"):
        found = Patches(graph)
    if not found.nodes:
        why = "no norm of this network remembers its training data"
        if evidence in ("auto", "analytic", "patches"):
            why += ", and it has no attention to compare patches by"
        raise UsageError(
            f"nothing is known of the activations: {why}",
            hint="give `--data`, or take `--scheme int8-dynamic`, `int8-weights` or `int4-weights`, which need no "
            "ranges (without `--correct-bias`); noise is not a substitute, and is not used silently",
        )
    return found


def given_inputs(graph: Graph, source: Source, normalisation: Any) -> Inputs:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    data = load_data(
        source.data,
        graph.input_names,
        limit=source.limit or _MEASURED,
        shapes=[
            tuple(None if is_symbolic(size) else int(size) for size in node.meta["val"].shape)
            for node in nodes
        ],
        dtypes=[leaf.dtype for leaf in leaves],
        tables=table_rows(graph),
        normalisation=normalisation,
        trust_modules=source.trust_modules,
    )
    fixed = fixed_batch(graph)
    used = len(data) if fixed is None else len(data) - len(data) % fixed
    if not used:
        raise UsageError(
            "there are fewer samples than one batch of the network",
            where=data.source,
            found=f"{len(data)} samples, and a fixed batch of {fixed}",
            hint="give more samples, or capture the network without `--batch static`",
        )
    inputs, labels = list[tuple[Tensor, ...]](), list[Tensor | None]()
    for rows, targets in data.batches(fixed or 64):
        if len(inputs) * (fixed or 64) < used:
            inputs.append(tuple(rows))
            labels.append(targets)
    whole = torch.cat(labels) if labels and labels[0] is not None else None  # type: ignore[arg-type]
    count = f"{used} samples" if used == len(data) else f"{used} of {len(data)} samples"
    return Inputs(inputs, whole, Evidence(f"{data.source}: {count}"))
