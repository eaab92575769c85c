"""Prompts: random tokens, or what a causal network writes itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.ranges.prompts import prompts

_NEXT = torch.randperm(50, generator=torch.Generator().manual_seed(5))


class Chain(nn.Module):
    """Says with certainty which token follows which; ``looks_back`` False: says so of the token itself."""

    def __init__(self, behind: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 50)
        with torch.no_grad():
            self.table.weight.copy_(40 * torch.eye(50)[_NEXT])
        self.behind = behind

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.table(ids)
        return scores if self.behind else scores + scores.mean(1, keepdim=True)


def test_a_network_writes_what_it_expects() -> None:
    graph = capture(Chain().eval(), (torch.zeros(2, 9, dtype=torch.long),))
    found = prompts(graph, seed=0, count=6)
    assert found.written
    assert [batch[0].shape for batch in found.batches] == [(2, 9)] * 3
    for (ids,) in found.batches:
        assert bool((ids[:, 1:] == _NEXT[ids[:, :-1]]).all())
    firsts = torch.cat([ids[:, 0] for (ids,) in found.batches])
    assert len(firsts.unique()) > 1


def test_a_network_that_looks_ahead_gets_random_tokens() -> None:
    graph = capture(Chain(behind=False).eval(), (torch.zeros(2, 9, dtype=torch.long),))
    found = prompts(graph, seed=0, count=4)
    assert not found.written
    assert not all(bool((ids[:, 1:] == _NEXT[ids[:, :-1]]).all()) for (ids,) in found.batches)


def test_prompts_of_a_free_length_are_longer_than_the_example() -> None:
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=40)}
    example = (torch.zeros(2, 9, dtype=torch.long),)
    graph = capture(Chain().eval(), example, dynamic={"ids": sizes})
    assert prompts(graph, seed=0, count=2).batches[0][0].shape == (2, 40)
