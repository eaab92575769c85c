"""fold-input: the network takes images as they are, and not normalised ones.

f((x - mean) / std)  =  f(a x + b)        a = 1 / std, b = -mean / std, one number per channel

The pass puts the affine behind the input; `fold-affine` takes it into the first convolution, exactly at zero
padding too, where a zero of the normalised image is the mean of the image.
"""

from __future__ import annotations

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
        if not self.mean or not self.std or min(self.std) <= 0:
            raise UsageError(
                f"`{self.name}` wants a mean, and a deviation above zero",
                found=f"mean {self.mean}, std {self.std}",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        for name, node in zip(graph.input_names, nodes, strict=True):
            value = node.meta.get("val")
            images = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2
            if name not in graph.entries and (name == self.input if self.input else images):
                yield Match(node, (Site(name, "constant"),), name)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        shape = shape_of(match.node)
        if len(shape) < 2:
            return Decline(
                Reason.AXIS_MISMATCH, match.node, "its second axis would be the channels"
            )
        for numbers in (self.mean, self.std):
            if len(numbers) not in (1, shape[1]):
                text = f"{len(numbers)} numbers for {shape[1]} channels"
                return Decline(Reason.NOT_PER_CHANNEL, match.node, text)
        return match

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
