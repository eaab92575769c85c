"""Random tokens: every row of a table, and nothing that is no row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.ranges.prompts import prompts, reads_tokens
from tests.nets import Compose

IDS = torch.randint(3, 11, (2, 6), generator=torch.Generator().manual_seed(0))


def made(forward: Any, *inputs: Tensor, **parts: nn.Module) -> Graph:
    module = Compose(forward, table=nn.Embedding(11, 4), **parts)
    return capture(module.eval(), inputs)


def test_rows_of_the_smallest_table() -> None:
    graph = made(
        lambda m, ids: m.table(ids) + m.small(ids.reshape(ids.shape)),
        IDS % 5,
        small=nn.Embedding(5, 4),
    )
    (ids,) = prompts(graph, 0, 64).batches[0]
    assert reads_tokens(graph)
    assert {0, 4} <= set(torch.cat([x[0] for x in prompts(graph, 0).batches]).unique().tolist())
    assert int(ids.max()) < 5


def test_positions_that_are_counted_leave_tokens_free() -> None:
    """As RoBERTa counts what is no padding."""
    graph = made(
        lambda m, ids: m.table(ids) + m.place(ids.ne(0).long().cumsum(1)),
        IDS,
        place=nn.Embedding(7, 4),
    )
    assert not torch.equal(prompts(graph, 0).batches[0][0], IDS)


def test_boxes_stay_those_of_the_example() -> None:
    """Not every box has a width that is a row of its table."""
    boxes = torch.tensor([1, 2, 7, 9]).expand(2, 6, 4).contiguous()

    def forward(m: Any, ids: Tensor, box: Tensor) -> Tensor:
        wide = m.size(box[..., 2] - box[..., 0])
        return m.table(ids) + m.corner(box[..., 0]) + m.corner(box[..., 2]) + wide  # type: ignore[no-any-return]

    graph = made(forward, IDS, boxes, size=nn.Embedding(11, 4), corner=nn.Embedding(11, 4))
    for ids, box in prompts(graph, 0, 8).batches:
        assert not torch.equal(ids, IDS)
        assert torch.equal(box, boxes)
