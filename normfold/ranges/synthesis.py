"""Inputs synthesised from the network: images whose batch statistics match those that the norms store.

Three objectives, each a sum over tensors of the graph:

* `Matching`, the default: batch statistics against the norms', scale-free, mean over channels and tensors
      mean_l mean_c ((m - mean) / g)^2 + ((s - std) / g)^2          g = max(std, 1e-3)
* `PerImage`: ZeroQ as published (Cai et al. 2020, arXiv 2001.00281): statistics of every image by itself, summed
  over channels, and of the pixels against 0 and 1. Homogenises images; here for comparison.
* `Patches`, for attention without BatchNorm: the entropy of the similarities of the patches is made large
  (Li et al. 2022, "Patch similarity aware data-free quantization for vision transformers").
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from normfold.domains.batches import Batches, fixed_batch, joined, split
from normfold.domains.placed import Placed
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import shape_of
from normfold.ir.statistics import Statistics, statistics_of
from normfold.job import Quantize
from normfold.ops.table import row_of
from normfold.progress import Listener, Progress, silent
from normfold.ranges.channel_moments import channel_moments
from normfold.report.quantization import Evidence

_TINY = 1e-3  # of a deviation: below, a channel is dead
_LARGE = 128 * 128  # positions from which on fewer images are made
_PATIENCE = 25  # steps without a loss 1 % lower
# steps by effort, each round with a rate that falls to zero, until the statistics fit
_ROUNDS = ((25,), (35, 15), (35, 50, 100, 150), (35, 50, 100, 150))
_WORST = 3  # norms that are named


@dataclass(frozen=True)
class Bounds:
    """The values that valid pixels take: numbers, or one per channel as (C,1,1)."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Synthesised:
    """Inputs, the loss that they started from and the one that they reached, steps and seconds.

    Attributes:
        worst: loss of the norms that are matched worst, by path.
    """

    inputs: tuple[Tensor, ...]
    noise: float
    loss: float
    steps: int
    seconds: float
    worst: dict[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """The loss of a synthesis: the nodes that it reads, and its value for theirs."""

    @property
    def nodes(self) -> Sequence[fx.Node]: ...

    def loss(self, inputs: Sequence[Tensor], values: dict[fx.Node, Tensor]) -> Tensor: ...


class Matching:
    """Statistics of the whole batch against those of the norms."""

    def __init__(self, graph: Graph) -> None:
        self.targets = _targets(graph)
        self.nodes = list(self.targets)

    def loss(self, inputs: Sequence[Tensor], values: dict[fx.Node, Tensor]) -> Tensor:
        return torch.stack(list(self.terms(values).values())).mean()

    def terms(self, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """The loss of every norm."""
        terms = {}
        for node, target in self.targets.items():
            x = values[node]
            mean, variance = channel_moments(x, target.dim)
            gap = (mean - target.mean.to(x)).square()
            gap = gap + ((variance + 1e-12).sqrt() - target.std.to(x)).square()
            terms[node] = (gap / target.std.to(x).clamp_min(_TINY).square()).mean()
        return terms

    def worst(self, values: dict[fx.Node, Tensor]) -> dict[str, float]:
        """The norms whose loss is largest, by path."""
        terms = {self.targets[node].site: float(term) for node, term in self.terms(values).items()}
        return dict(sorted(terms.items(), key=lambda item: -item[1])[:_WORST])


class PerImage:
    """ZeroQ's: every image against the norms' statistics, and its pixels against mean 0 and deviation 1."""

    def __init__(self, graph: Graph) -> None:
        self.targets = _targets(graph)
        self.nodes = list(self.targets)

    def loss(self, inputs: Sequence[Tensor], values: dict[fx.Node, Tensor]) -> Tensor:
        pairs = [
            (x, torch.zeros((), dtype=torch.float32), torch.ones((), dtype=torch.float32))
            for x in inputs
        ]
        pairs += [(values[node], at.mean, at.std) for node, at in self.targets.items()]
        total = inputs[0].new_zeros(())
        for x, mean, std in pairs:
            rows = x.flatten(2)
            gap = (rows.mean(2) - mean.to(x)).square()
            gap = gap + ((rows.var(2) + 1e-6).sqrt() - std.to(x)).square()
            total = total + gap.sum() / len(x)
        return total


class Patches:
    """The differential entropy of the cosine similarities of patches, by a kernel estimate; larger is better."""

    bandwidth, points, patches = 0.01, 10, 256

    def __init__(self, graph: Graph) -> None:
        self.nodes = [
            node for node in graph.nodes if row_of(node).attention and not is_static(node)
        ]

    def loss(self, inputs: Sequence[Tensor], values: dict[fx.Node, Tensor]) -> Tensor:
        smooth = sum(_variation(x) for x in inputs)
        return -torch.stack([self._entropy(values[node]) for node in self.nodes]).sum() + smooth

    def _entropy(self, x: Tensor) -> Tensor:
        if x.shape[-2] > self.patches:  # their pairs would fill the memory
            chosen = torch.randperm(x.shape[-2], generator=torch.Generator().manual_seed(0))
            x = x[..., chosen[: self.patches].to(x.device), :]
        patches = F.normalize(
            x.mean(-3), dim=-1
        )  # (..., heads, tokens, features): mean over the heads
        similar = (patches @ patches.transpose(-1, -2)).flatten(1)  # (N, tokens^2)
        low, high = similar.amin(1, keepdim=True), similar.amax(1, keepdim=True)
        grid = low + (high - low) * torch.linspace(
            0, 1, self.points, device=x.device, dtype=x.dtype
        )
        apart = (grid[:, :, None] - similar[:, None, :]) / self.bandwidth
        density = (-0.5 * apart.square()).exp().mean(2) / (self.bandwidth * math.sqrt(2 * math.pi))
        integrand = -density * (density + 1e-9).log()
        return torch.trapezoid(integrand, grid, dim=1).mean()


def synthesise(
    graph: Graph,
    objective: Objective,
    options: Quantize,
    seed: int = 0,
    bounds: Bounds | None = None,
    *,
    say: Listener = silent,
    device: torch.device | str = "cpu",
) -> Synthesised:
    """Inputs that make the objective small, by Adam on the pixels.

    Args:
        graph: baked; it is run in the types of its inputs, and not changed.
        options: how many images, how many steps (None: 35, then up to 15 more as long as the statistics do
            not fit; `_ROUNDS`), and what an image goes through in every step, so that it holds
            nothing that only one position explains: a mirror image every other time (``flip``), a shift by up to
            so many pixels (``crop``), a Gaussian of 3 x 3 with this deviation (``blur``).
        seed: of the noise that they start from.
        bounds: of valid pixels; images never leave them.
        device: to run it on. The images start from the same noise on every one.

    Raises:
        UsageError: the network has an input that is not an image, or the objective looks at nothing.
    """
    start = time.perf_counter()
    if not objective.nodes:
        raise UsageError("the network has no tensor with known statistics to start from")
    pixels = [
        Pixels(shape, options, seed, bounds, device, is_bytes(node))
        for shape, node in zip(
            image_shapes(graph, options.images, options.effort), placeholders(graph), strict=True
        )
    ]
    optimizer = torch.optim.Adam([p.values for p in pixels], lr=options.synthesis_rate)
    watch = Tap(graph, objective.nodes, device)
    random = torch.Generator().manual_seed(seed)

    def seen(inputs: list[Tensor]) -> Tensor:
        return objective.loss(inputs, watch(inputs))

    noise = loss = math.inf
    made = 0
    given = options.synthesis_steps
    enough = Evidence.SUSPICIOUS if options.effort < 2 else Evidence.NATURAL
    for steps in _ROUNDS[options.effort] if given is None else (given,):
        total, best, since = made + steps, math.inf, 0
        while made < total and since < _PATIENCE:
            share = 0.5 * (1 + math.cos(math.pi * (steps - total + made) / steps))
            for group in optimizer.param_groups:
                group["lr"] = options.synthesis_rate * share
            made += 1
            result = seen([p.seen(made, random) for p in pixels])
            loss = float(result.detach())
            noise = loss if made == 1 else noise
            optimizer.zero_grad()
            result.backward()
            optimizer.step()
            for p in pixels:
                p.clip()
            lower = math.isinf(best) or loss < best - 0.01 * abs(best)
            since = 0 if lower else since + 1
            best = min(best, loss)
            say(Progress("synthesising inputs", made, total, f"loss {loss:.4f}"))
        with torch.no_grad():
            inputs = [p.plain() for p in pixels]
            loss = float(seen([x.to(p.values.dtype) for x, p in zip(inputs, pixels, strict=True)]))
        if not isinstance(objective, Matching) or loss <= enough:
            break
    worst = objective.worst(watch.values) if isinstance(objective, Matching) else {}
    return Synthesised(
        tuple(x.cpu() for x in inputs), noise, loss, made, time.perf_counter() - start, worst
    )


def image_shapes(graph: Graph, images: int, effort: int = 1) -> list[tuple[int, ...]]:
    """Shapes of the inputs to make: ``images`` of them; 0: 64 up to 128 x 128 pixels, 16 above (32 with an effort
    of 2); and whole batches where the batch is fixed.

    Raises:
        UsageError: an input is not (N,C,H,W) in floats or bytes, nor the only one and (N,...) in floats.
    """
    shapes, size, few = [], fixed_batch(graph) or 1, 16 if effort < 2 else 32
    nodes = placeholders(graph)
    for name, node in zip(graph.input_names, nodes, strict=True):
        value = node.meta.get("val")
        # of several inputs one may be a mask or a time; one alone is the signal, whatever its axes are
        if (
            not isinstance(value, Tensor)
            or not (value.is_floating_point() or is_bytes(node))
            or (value.dim() != 4 if len(nodes) > 1 else value.dim() < 2)
        ):
            raise UsageError(
                f"`{name}` is not a batch of images: nothing can be synthesised for it",
                hint="give `--data`, or quantise weights only",
            )
        _, *rest = shape_of(node)
        large = math.prod(rest) > (3 * _LARGE if len(rest) < 3 else rest[0] * _LARGE)
        count = images or (few if large else 64)
        shapes.append((-(-count // size) * size, *rest))
    return shapes


def is_bytes(node: fx.Node) -> bool:
    """True for an input of images from 0 to 255."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 4


def placeholders(graph: Graph) -> list[fx.Node]:
    """The inputs of a graph, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


_HALF = 127.5  # of the largest byte


class Pixels:
    """One input that is optimised: kept within bounds, and where it is an image, larger than what the network sees
    by the crop. Bytes are optimised as numbers from -1 to 1."""

    def __init__(
        self,
        shape: tuple[int, ...],
        options: Quantize,
        seed: int,
        bounds: Bounds | None,
        device: torch.device | str = "cpu",
        byte: bool = False,
    ) -> None:
        self.options, self.byte = options, byte
        if byte and bounds is not None:
            bounds = Bounds(bounds.low / _HALF - 1, bounds.high / _HALF - 1)
        self.size, self.image = shape[-2:], len(shape) == 4
        random = torch.Generator().manual_seed(seed)
        grown = tuple(size + options.crop for size in self.size) if self.image else self.size
        start = 0.9 * torch.randn((*shape[:-2], *grown), generator=random, dtype=torch.float32)
        if bounds is not None:  # noise of the same place and width as the pixels may have
            middle, half = (bounds.low + bounds.high) / 2, (bounds.high - bounds.low) / 2
            start = torch.clamp(start / 2, -1, 1) * half + middle
        start = start.to(device)
        layout = torch.channels_last if self.image else torch.contiguous_format
        self.values = start.contiguous(memory_format=layout).requires_grad_()
        self.bounds = bounds and Bounds(bounds.low.to(device), bounds.high.to(device))

    def seen(self, step: int, random: torch.Generator) -> Tensor:
        """What the network sees in a step."""
        x = self.values
        if not self.image:
            return x
        if self.byte:
            x = (x + 1) * _HALF
        if self.options.crop:
            down, right = torch.randint(self.options.crop + 1, (2,), generator=random).tolist()
            x = x[:, :, down : down + self.size[0], right : right + self.size[1]]
        if self.options.flip and step % 2 == 0:
            x = x.flip(3)
        return _blurred(x, self.options.blur) if self.options.blur else x

    def plain(self) -> Tensor:
        """The images themselves."""
        if not self.image:
            return self.values.detach().clone()
        edge = self.options.crop // 2
        x = self.values.detach()[:, :, edge : edge + self.size[0], edge : edge + self.size[1]]
        x = _blurred(x, self.options.blur) if self.options.blur else x
        if self.byte:
            x = ((x + 1) * _HALF).round().clamp(0, 2 * _HALF).to(torch.uint8)
        return x.contiguous()

    @torch.no_grad()
    def clip(self) -> None:
        if self.bounds is not None:
            limited = torch.minimum(torch.maximum(self.values, self.bounds.low), self.bounds.high)
            self.values.copy_(limited)


class Tap:
    """Runs a graph as far as the nodes that are asked for, with gradients to the inputs alone."""

    def __init__(
        self, graph: Graph, nodes: Sequence[fx.Node], device: torch.device | str = "cpu"
    ) -> None:
        self.wanted, self.values = set(nodes), dict[fx.Node, Tensor]()
        self._batch = fixed_batch(graph)
        self._run = Evaluator(graph.module, Batches(Placed(device)), self._watch)

    def __call__(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        self.values = {}
        with contextlib.suppress(_Enough):
            self._run.evaluate(*zip(*split(inputs, self._batch), strict=True))
        return self.values

    def _watch(self, node: fx.Node, value: Any) -> Tensor | None:
        if node.op == "get_attr" and isinstance(value, Tensor):
            return value.detach()
        if node in self.wanted:
            self.values[node] = joined(value)
            if len(self.values) == len(self.wanted):
                raise _Enough
        return None


class _Enough(Exception):
    """Everything that was asked for is there."""


def _targets(graph: Graph) -> dict[fx.Node, Statistics]:
    found = ((node, statistics_of(node)) for node in graph.nodes if not is_static(node))
    return {
        node: target
        for node, target in found
        if target is not None and not bool(target.mean.isnan().any()) and node.op != "placeholder"
    }


def _blurred(x: Tensor, deviation: float) -> Tensor:
    side = torch.exp(-0.5 * (torch.arange(-1, 2) / deviation) ** 2)
    kernel = (side[:, None] * side[None, :] / side.sum() ** 2).to(x)
    channels = x.shape[1]
    return F.conv2d(
        F.pad(x, (1, 1, 1, 1), "reflect"), kernel.expand(channels, 1, 3, 3), groups=channels
    )


def _variation(x: Tensor) -> Tensor:
    """Total variation per value, along all axes behind the channels: keeps images, and sounds, smooth."""
    axes = range(2, x.dim()) if x.dim() > 2 else (1,)
    return 0.05 * torch.stack([x.diff(dim=dim).abs().mean() for dim in axes]).sum()
