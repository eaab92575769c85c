"""Ids that a network takes: which rows they are of the tables that it looks them up in."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.graph import argument, shape_of
from normfold.ops.table import Kind, row_of


def table_rows(graph: Graph) -> list[int]:
    """For each input, the rows of the smallest table that it is looked up in; 0 where it is used otherwise."""
    return [_rows(node) for node in graph.nodes if node.op == "placeholder"]


def _rows(start: fx.Node) -> int:
    seen, stack, found = {start}, [start], list[int]()
    while stack:
        node = stack.pop()
        for user in node.users:
            row, value = row_of(user), user.meta.get("val")
            if row.lookup and argument(user, "indices") is node:
                found.append(shape_of(user.args[0])[0])  # type: ignore[arg-type]
            elif user.op != "call_function" or isinstance(value, (list, tuple)):
                return 0
            elif not isinstance(value, Tensor) or value.dtype == torch.bool:
                continue  # a size, a comparison: any id will do
            elif row.kind is not Kind.MOVE or value.is_floating_point():
                return 0
            elif user not in seen:
                seen.add(user)
                stack.append(user)
    return min(found, default=0)


def spread(leaf: Tensor, rows: int, seed: int) -> Tensor:
    """Ids of this shape at even distances all over a table, in random order; other seeds read other rows.

    None is below those of ``leaf``: the lowest are special ones, as of padding.
    """
    least = min(int(leaf.min()), rows - 1)
    rows -= least
    random = torch.Generator().manual_seed(seed)
    count = leaf.numel()
    start = int(torch.randint(0, rows, (), generator=random))
    ids = (torch.arange(count) * max(1, rows // max(1, count)) + start) % rows
    ids = least + ids[torch.randperm(count, generator=random)]
    return ids.reshape(leaf.shape).to(leaf.dtype)
