"""torch.compile against the plain run, alone and below activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.nn.norms import STATISTICAL, assert_same, norm_of, state, tokens, weighted_sum


@pytest.fixture(autouse=True)
def _no_code_of_other_tests() -> Iterator[None]:
    """Else their norms count against the limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["prepbn", "un", "powernorm groups"])
def test_compiled_training_is_the_same(kind: str) -> None:
    def run(compiled: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net: Any = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), norm_of(kind), nn.GELU())
        call = torch.compile(net, backend="aot_eager") if compiled else net
        for step in range(3):
            weighted_sum(call(tokens(3, 5, 4, seed=step))).backward()
        return state(net)

    assert_same(run(True), run(False), 1e-12)


@pytest.mark.parametrize("kind", ["prepbn", "un"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_compiled_blocks_are_recomputed_alike(kind: str, reentrant: bool) -> None:
    """Each block compiled, then checkpointed: compiled code has to know that it runs in a backward."""

    def run(compiled: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), norm_of(kind))
        call: Any = torch.compile(net, backend="aot_eager") if compiled else net
        for step in range(3):
            x = tokens(3, 5, 4, seed=step).requires_grad_()
            weighted_sum(
                checkpoint(call, x, use_reentrant=reentrant) if compiled else call(x)
            ).backward()
        return state(net)

    assert_same(run(True), run(False), 1e-12)


@pytest.mark.parametrize("kind", STATISTICAL)
def test_eval_mode_compiles_in_one_piece(kind: str) -> None:
    norm = norm_of(kind)
    norm.training = False
    x = tokens(3, 5, 4)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm(x), rtol=0, atol=0)


def test_training_of_a_prepbn_compiles_in_one_piece() -> None:
    norm = norm_of("prepbn")
    x = tokens(3, 5, 4)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm_of("prepbn")(x), rtol=0, atol=1e-12)
