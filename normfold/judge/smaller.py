"""Smaller inputs than those of a capture at fixed sizes, at which its graph may still be evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import concrete
from normfold.ir.sizes import Sizes
from normfold.judge.inputs import SMALL, Case

LEAST = 3  # of the extent of a map of features: a place without a border


def smaller(graph: Graph, case: Case) -> Case | None:
    """The inputs of a case, smaller: images of which every window still sees all that it reads, and short texts.

    None where nothing is to be made smaller. Whether the graph can be evaluated there is not known.
    """
    windows = list(_windows(graph))
    leaves = []
    for leaf, shape in zip(case.leaves, Sizes(graph).shapes, strict=True):
        fixed = shape is not None and all(isinstance(size, int) for size in shape[1:])
        if not isinstance(leaf, Tensor) or not fixed:
            leaves.append(leaf)
        elif leaf.is_floating_point() and leaf.dim() == 4 and windows:
            sizes = [_size(size, windows, axis) for axis, size in enumerate(leaf.shape[2:])]
            leaves.append(leaf[:, :, : sizes[0], : sizes[1]])
        elif not leaf.is_floating_point() and leaf.dim() == 2:
            leaves.append(leaf[:, :SMALL])
        else:
            leaves.append(leaf)
    before, after = ([getattr(leaf, "shape", None) for leaf in of] for of in (case.leaves, leaves))
    return None if before == after else Case(case.name, tuple(leaves))


def _windows(graph: Graph) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Extents of what convolutions and pools of images read and make, and how much of it there has to be."""
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or is_static(node):
            continue
        if not {"stride", "padding"} <= {spec.name for spec in target._schema.arguments}:
            continue
        x, kernel, *_ = cast("tuple[fx.Node, Any]", node.args)
        sides = kernel.meta["val"].shape[2:] if isinstance(kernel, fx.Node) else kernel
        sides = [sides, sides] if isinstance(sides, int) else [*sides, *sides][:2]
        made = pytree.tree_leaves(node.meta.get("val"))[0]
        for value, reach in ((x.meta.get("val"), [side // 2 for side in sides]), (made, [0, 0])):
            if isinstance(value, Tensor) and value.dim() == 4:
                extents = [
                    concrete(size) for size in value.shape[2:]
                ]  # `int` would fix a free size
                needs = [max(LEAST, one + 1) for one in reach]
                yield extents, list(map(min, extents, needs))


def _size(size: int, windows: Sequence[tuple[Sequence[int], Sequence[int]]], axis: int) -> int:
    """The least size of an image that leaves as much as every window needs, in steps of the whole stride."""
    seen = [(extents[axis], needs[axis]) for extents, needs in windows if extents[axis] > 1]
    step = max([1, *(math.ceil(size / extent) for extent, _ in seen)])
    wanted = max([1, *(math.ceil(need * size / extent) for extent, need in seen)])
    return min(size, step * math.ceil(wanted / step))
