"""Padded tokens against tokens that are not there: statistics, gradients and state; what fits no input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn import offline_norms, valid_tokens
from tests.nn.norms import STATISTICAL, assert_same, norm_of, state, tokens, weighted_sum


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30, 0.0])
@pytest.mark.parametrize("kind", STATISTICAL)
def test_padded_tokens_are_not_there(kind: str, padding: float) -> None:
    """Four steps, so that windows and running values are used; the loss reads valid tokens only."""
    norm, twin = norm_of(kind), norm_of(kind)
    for step in range(4):
        rows = tokens(3, 5, 4, seed=step)
        mask = torch.rand(3, 5) > 0.3
        padded = torch.where(mask.unsqueeze(-1), rows, padding).requires_grad_()
        removed = rows[mask].requires_grad_()
        with valid_tokens(nn.Sequential(norm), mask):
            y = norm(padded)
        wanted = twin(removed)
        torch.testing.assert_close(y[mask], wanted, rtol=1e-12, atol=1e-12)
        weighted_sum(y[mask]).backward()
        weighted_sum(wanted).backward()
        assert padded.grad is not None
        assert removed.grad is not None
        torch.testing.assert_close(padded.grad[mask], removed.grad, rtol=1e-11, atol=1e-12)
        assert torch.equal(padded.grad[~mask], torch.zeros_like(padded.grad[~mask]))
        assert_same(state(norm), state(twin), 1e-11)


def other_kinds() -> list[str]:
    return [kind for kind in STATISTICAL if kind != "powernorm groups"]


@pytest.mark.parametrize("kind", other_kinds())
def test_padded_positions_are_normalised_as_well(kind: str) -> None:
    """Their outputs follow from the statistics of the others, and their gradients reach those."""
    norm = norm_of(kind)
    x = tokens(3, 5, 4)
    mask = torch.rand(3, 5) > 0.3
    x[0, 0], x[0, 1] = x[1, 1], x[1, 1]
    mask[0, 0], mask[0, 1] = True, False
    with valid_tokens(norm, mask):
        y = norm(x)
    torch.testing.assert_close(y[0, 0], y[0, 1], rtol=0, atol=0)


def test_channels_first_masks_have_the_shape_of_the_rest() -> None:
    norm, twin = norm_of("un", axis=1), norm_of("un")
    x = tokens(2, 5, 6, 4)
    mask = torch.rand(2, 5, 6) > 0.4
    with valid_tokens(norm, mask):
        y = norm(x.movedim(-1, 1))
    torch.testing.assert_close(y.movedim(1, -1)[mask], twin(x[mask]))


@pytest.mark.parametrize("shape", [(3, 4), (3,), (3, 1), (3, 5, 4)])
def test_a_mask_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    norm = norm_of("bn")
    mask = torch.ones(shape, dtype=torch.bool)
    with valid_tokens(norm, mask), pytest.raises(UsageError, match="does not fit"):
        norm(tokens(3, 5, 4))


def test_masks_are_reset_whatever_happens() -> None:
    model = nn.Sequential(norm_of("bn"), norm_of("un"))
    outer, inner = torch.ones(3, 5, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)

    def masks() -> list[Tensor | None]:
        return [norm.mask for norm in offline_norms(model).values()]

    def fail_within(mask: Tensor) -> None:
        with valid_tokens(model, mask):
            assert masks() == [mask, mask]
            raise RuntimeError("inside")

    with valid_tokens(model, outer):
        with pytest.raises(RuntimeError, match="inside"):
            fail_within(inner)
        assert masks() == [outer, outer]
    assert masks() == [None, None]


def test_masks_are_bool_and_leave_something_to_measure() -> None:
    norm = norm_of("bn")
    with pytest.raises(UsageError, match="bool"), valid_tokens(norm, torch.ones(3, 5)):
        pass
    nearly = torch.zeros(3, 5, dtype=torch.bool)
    nearly[1, 1] = True
    with pytest.raises(UsageError, match="two valid tokens"), valid_tokens(norm, nearly):
        pass
    norm.eval()
    with valid_tokens(norm, nearly):
        assert norm(tokens(3, 5, 4)).shape == (3, 5, 4)
