"""Where the tensors of a network lie: by its norms' statistics, inputs made for it, or the user's data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.data.samples import load_data
from normfold.errors import UsageError
from normfold.graph import Graph
from normfold.graph.graph import is_symbolic
from normfold.graph.intervals import Interval
from normfold.graph.placed import device_of
from normfold.graph.scheme import SCHEMES
from normfold.ranges.analytic import assumed, derive
from normfold.ranges.prompts import prompts, reads_tokens
from normfold.ranges.ranges import clip, measure, settle, widen
from normfold.ranges.synthesis import (
    Bounds,
    Matching,
    Objective,
    Patches,
    PerImage,
    Pixels,
    Recipe,
    distil,
    image_shapes,
)
from normfold.report.quantization import Evidence
from normfold.rewrite import parse, run_pipeline

Progress = Callable[[str], None]
Source = Literal["auto", "distilled", "patches", "zeroq", "analytic", "noise"]
Scheme = Literal["int8", "int8-weights", "int4-weights", "int8-dynamic"]

_MEASURED = 256  # rows of the user's data


@dataclass(frozen=True)
class Quantization:
    """What `normfold.convert` needs to quantise.

    Attributes:
        scheme: ``int8``: weights and activations, in integer kernels; ``int8-dynamic``: weights of matrix
            products, their inputs at run time; ``int8-weights``, ``int4-weights``: weights alone.
        source: where ranges come from where there are no ``data``. ``auto``: inputs distilled from the norms'
            statistics, together with what those tell by themselves; ``noise`` is a control, never taken by itself.
        data: anything that `normfold.data.samples.load_data` takes; labels are used for the report.
        recipe: of distilled inputs.
        pixels: smallest and largest value of valid inputs; known for timm's networks.
        weights: pipeline text of what puts the weights on grids, in place of the scheme's own.
        vnni: the x86 processor adds up integer products without saturating (AVX512-VNNI, AVX-VNNI, AMX); if not,
            weights take 7 bits.
        target_size: bytes that the weights may take (above 1), or their share of what 8 bits take (up to 1): each
            layer then gets its own format, by its measured harm.
        target_latency: milliseconds that a run of the example inputs may take in onnxruntime here, likewise.
        max_drop: points of top-1 (of agreement with the float network where there are no labels) that may be
            lost: the smallest or fastest choice of formats that keeps it; without targets, a limit on the result.
        simulate: 2, 4 or 8 bits for every layer, as in the ZeroQ paper; no runtime executes less than 8 faster.
        activation_bits: below 8 they are simulated, and nothing can be exported.
        clip: below 8 bits, narrow every interval as far as makes the squared error of its grid least.
        equalize: equalise channels across layers first.
        rotate: rotate residual streams that RMSNorms read.
        migrate: move scales from activations into weights where a norm stands in front.
        correct_bias: take the mean error out of every bias but the heads'.
        save_distilled: an ``.npz`` file for the inputs that were distilled, by name.
        limit: at most so many samples of the data.
        device: ``cpu`` or ``cuda``, that ranges are found on; by default the latter where there is one.
    """

    scheme: Scheme = "int8"
    source: Source = "auto"
    data: Any = None
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=25))
    pixels: tuple[float, float] | None = None
    weights: str | None = None
    vnni: bool = True
    target_size: float | None = None
    target_latency: float | None = None
    max_drop: float | None = None
    simulate: bool = False
    activation_bits: int = 8
    clip: bool = True
    equalize: bool = False
    rotate: bool = False
    migrate: bool = False
    correct_bias: bool = False
    save_distilled: Path | None = None
    limit: int | None = None
    device: str | None = None
    trust_modules: Sequence[str] = ()

    @property
    def mixed(self) -> bool:
        """True if every layer gets a format of its own."""
        return self.target_size is not None or self.target_latency is not None or self.simulate

    @property
    def exact_passes(self) -> list[str]:
        """The exact passes that make a network easier to quantise, for the pipeline that the verdict judges."""
        wanted = {"equalize": self.equalize, "rotate-stream": self.rotate}
        return [name for name, on in wanted.items() if on]


@dataclass(frozen=True)
class Calibrated:
    """A float network of which is known where its tensors lie: one table, from which every dialect is written.

    Attributes:
        graph: its nodes carry the intervals.
        inputs, labels: what they were measured on, and what the network is compared on.
        told: names of the tensors that the norms' statistics reach.
    """

    graph: Graph
    inputs: list[tuple[Tensor, ...]]
    labels: Tensor | None
    evidence: Evidence
    told: frozenset[str]
    seconds: float


def calibrate(
    graph: Graph,
    options: Quantization,
    *,
    normalisation: Any = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Find out where the tensors of a baked graph lie.

    Raises:
        UsageError: nothing is known of the activations: no data, and no norm that remembers any.
    """
    start, say = time.perf_counter(), progress or (lambda line: None)
    device, source = device_of(options.device), graph.copy()
    bounds = pixel_bounds(options, normalisation)
    needed = options.scheme == "int8" or options.correct_bias or options.data is not None
    if not needed and not reads_tokens(source):
        return _unmeasured(source, start)
    inputs, labels, evidence = _inputs(source, options, bounds, normalisation, say, device)
    source.samples = [pytree.tree_unflatten(list(x), _structure(graph)) for x in inputs]
    if options.migrate:
        source, _ = run_pipeline(source, parse("migrate-scale,restore,bake"))
    say("finding where the tensors lie")
    alone = options.source == "analytic" and options.data is None
    told = derive(source, _interval(bounds))
    found = measure(source, [] if alone else inputs, device)
    union = options.data is None and options.source == "auto"
    joined = told.keys() - assumed(source) if union else ()
    evidence = replace(evidence, **settle(found, told, joined))
    if union and evidence.doubtful:
        widen(source, [_noise(source, options.recipe, bounds)], device)
        text = f"{evidence.source}; its statistics do not fit, so noise widens the ranges"
        evidence = replace(evidence, source=text)
    if options.clip and options.activation_bits < 8 and inputs:
        clip(source, inputs, SCHEMES["ort-x86"], options.activation_bits, device)
    names = frozenset(node.name for node in told)
    return Calibrated(source, inputs, labels, evidence, names, time.perf_counter() - start)


def _unmeasured(graph: Graph, start: float) -> Calibrated:
    """Weights need no ranges: the example inputs are there to compare on."""
    leaves = tuple(pytree.tree_leaves((graph.args, graph.kwargs)))
    nothing = Evidence("none needed")
    return Calibrated(graph, [leaves], None, nothing, frozenset(), time.perf_counter() - start)


def pixel_bounds(options: Quantization, normalisation: Any) -> Bounds | None:
    """What valid inputs lie between: as given, or from 0 to 1 before the network's own normalisation."""
    if options.pixels is not None:
        low, high = (torch.tensor(float(end)) for end in options.pixels)
        return Bounds(low, high)
    if normalisation is None:
        return None
    mean, std = (torch.tensor(normalisation[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    return Bounds(-mean / std, (1 - mean) / std)


def _interval(bounds: Bounds | None) -> Interval | None:
    return None if bounds is None else Interval(float(bounds.low.min()), float(bounds.high.max()))


def _structure(graph: Graph) -> Any:
    return pytree.tree_structure((graph.args, graph.kwargs))


def _inputs(
    graph: Graph,
    options: Quantization,
    bounds: Bounds | None,
    normalisation: Any,
    say: Progress,
    device: torch.device,
) -> tuple[list[tuple[Tensor, ...]], Tensor | None, Evidence]:
    """Inputs to measure on, labels if there are any, and where they are from."""
    if options.data is not None:
        return _given(graph, options, normalisation)
    if options.source == "noise":
        return [_noise(graph, options.recipe, bounds)], None, Evidence("noise")
    if reads_tokens(graph):
        made = prompts(graph, options.recipe.seed, options.recipe.images)
        return made, None, Evidence(f"random tokens: {sum(len(x[0]) for x in made)} prompts")
    objective = _objective(graph, options.source)
    found = distil(graph, objective, options.recipe, bounds, say, device)
    if options.save_distilled is not None:
        pairs = zip(graph.input_names, found.inputs, strict=True)
        np.savez(options.save_distilled, **{name: x.numpy() for name, x in pairs})  # type: ignore[arg-type]
    words = {
        Matching: "distilled",
        PerImage: "distilled as ZeroQ does",
        Patches: "distilled patches",
    }
    text = f"{words[type(objective)]}: {len(found.inputs[0])} images, {found.steps} steps"
    if not isinstance(objective, Matching):  # on another scale
        return [found.inputs], None, Evidence(text)
    return [found.inputs], None, Evidence(text, found.loss, found.noise)


def _noise(graph: Graph, recipe: Recipe, bounds: Bounds | None) -> tuple[Tensor, ...]:
    """What distillation starts from."""
    return tuple(Pixels(shape, recipe, bounds).plain() for shape in image_shapes(graph, recipe))


def _objective(graph: Graph, source: Source) -> Objective:
    kinds: dict[str, Callable[[Graph], Objective]] = {"zeroq": PerImage, "patches": Patches}
    found = kinds.get(source, Matching)(graph)
    if not found.nodes and source in ("auto", "analytic"):
        found = Patches(graph)
    if not found.nodes:
        raise UsageError(
            "nothing is known of the activations: no norm of this network remembers its training data",
            hint="give `--data`, or take `--scheme int8-dynamic`, `int8-weights` or `int4-weights`, which need no "
            "ranges (without `--correct-bias`); noise is no substitute, and is not used silently",
        )
    return found


def _given(
    graph: Graph, options: Quantization, normalisation: Any
) -> tuple[list[tuple[Tensor, ...]], Tensor | None, Evidence]:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    data = load_data(
        options.data,
        graph.input_names,
        limit=options.limit or _MEASURED,
        shapes=[
            tuple(None if is_symbolic(size) else int(size) for size in node.meta["val"].shape)
            for node in nodes
        ],
        dtypes=[leaf.dtype for leaf in leaves],
        normalisation=normalisation,
        trust_modules=options.trust_modules,
    )
    inputs, labels = [], []
    for rows, targets in data.batches(64):
        inputs.append(tuple(rows))
        labels.append(targets)
    whole = torch.cat(labels) if labels and labels[0] is not None else None  # type: ignore[arg-type]
    return inputs, whole, Evidence(f"{data.source}: {len(data)} samples")
