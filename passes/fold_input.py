"""fold-input: the network takes images as they are, and not normalised ones.

f((x - mean) / std)  =  f(a x + b)        a = 1 / std, b = -mean / std, one number per channel

The pass puts the affine behind the input; `fold-affine` takes it into the first convolution, exactly at zero
padding too, where a zero of the normalised image is the mean of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from normfold.errors import UsageError
from normfold.ir import Graph, Site, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.graph import Entry, shape_of
from normfold.ir.sites import AffineOf
from normfold.rewrite import Decline, Exactness, Match, Pass, Reason, Rewriter


@dataclass(frozen=True)
class FoldInput(Pass):
    """Take the normalisation of the inputs into the network. The verdict compares with the original on inputs that
    are normalised.

    Options:
        mean: of each channel (``0.485|0.456|0.406``); one number stands for all channels.
        std: the deviation of each channel, likewise.
        input: the name of the input; without one, every float input of three axes or more.

    Exact:    up to rounding.
    Declines: not-per-channel (another number of channels), axis-mismatch (no channels).
    """

    name: ClassVar[str] = "fold-input"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not self.mean or not self.std or not finite or min(self.std) <= 0:
            raise UsageError(
                f"`{self.name}` wants a mean, and a deviation above zero",
                found=f"mean {self.mean}, std {self.std}",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        inputs = dict(zip(graph.input_names, nodes, strict=True))
        taken = {name: node for name, node in inputs.items() if _is_float(node)}
        if self.input:
            taken = {name: node for name, node in taken.items() if name == self.input}
        else:
            taken = {name: node for name, node in taken.items() if len(shape_of(node)) > 2}
        again = [name for name in taken if name in graph.entries]
        if again or not taken:
            raise UsageError(
                f"`{self.name}` has no input to normalise",
                found=f"`{again[0]}` is normalised inside already" if again else self.input,
                hint=f"inputs: {', '.join(f'`{name}`' for name in inputs)}; it takes floats, and of three axes or "
                "more where none is named",
            )
        channels = {shape_of(node)[1] for node in taken.values() if len(shape_of(node)) > 1}
        if channels and all(self._misfit(count) for count in channels):
            raise UsageError(
                f"`{self.name}` has numbers for other channels than the inputs have",
                found=self._misfit(channels.pop()),
                hint="one number for each channel, with `|` between them, or one for all",
            )
        for name, node in taken.items():
            yield Match(node, (Site(name, "constant"),), name)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        shape = shape_of(match.node)
        if len(shape) < 2:
            return Decline(
                Reason.AXIS_MISMATCH, match.node, "its second axis would be the channels"
            )
        misfit = self._misfit(shape[1])
        return Decline(Reason.NOT_PER_CHANNEL, match.node, misfit) if misfit else match

    def _misfit(self, channels: int) -> str:
        """How the numbers do not fit, in words; empty where they do."""
        counts = [len(numbers) for numbers in (self.mean, self.std)]
        wrong = next((count for count in counts if count not in (1, channels)), None)
        return "" if wrong is None else f"{wrong} numbers for {channels} channels"

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node: fx.Node = match.node
        mean, std = (
            torch.tensor(numbers, dtype=torch.float64).expand(shape_of(node)[1]).contiguous()
            for numbers in (self.mean, self.std)
        )
        scale, shift = (
            rewriter.cast(rewriter.constant(values, f"input_{name}"), node.meta["val"].dtype)
            for name, values in (("scale", 1 / std), ("shift", -mean / std))
        )
        affine = rewriter.insert_after(node, channel_affine, node, scale, shift, 1)
        facts.put(affine, AffineOf(match.sites))
        rewriter.replace(node, affine, keep=(affine,))
        rewriter.changed(node)
        rewriter.graph.entries[match.plan] = Entry(mean, std)
        rewriter.graph.sites[match.path] = match.sites[0]
        rewriter.graph.notes.append(f"`{match.plan}` is normalised inside: give it as it is")
        rewriter.record(f"{match.path}: normalised inside")


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
