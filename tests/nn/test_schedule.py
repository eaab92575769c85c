"""The schedule of PRepBN: the paper's line, its warm-up, and training resumed in the middle."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from normfold.errors import UsageError
from normfold.nn import UN, Blended, PRepBN, Progressive
from tests.nn.norms import tokens


def mixes(model: nn.Module) -> list[float]:
    return [float(m.mix) for m in model.modules() if isinstance(m, PRepBN)]


def test_the_line_and_its_warmup() -> None:
    model = nn.Sequential(PRepBN(4), nn.Sequential(PRepBN(4)), UN(4))
    schedule = Progressive(model, 4, warmup=2)
    values = []
    for _ in range(9):
        values.append(schedule.value)
        assert mixes(model) == [schedule.value] * 2
        schedule.step()
    assert values == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]


def test_without_warmup_the_first_step_is_layernorm_and_step_t_is_not() -> None:
    schedule = Progressive(PRepBN(4), 300)
    assert schedule.value == 1
    for _ in range(299):
        schedule.step()
    assert schedule.value > 0
    schedule.step()
    assert schedule.value == 0


class Run:
    """A tiny training with everything that has state."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 4), PRepBN(4), nn.Linear(4, 4), UN(4, window=2, warmup=3)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.schedule = Progressive(self.model, 5, warmup=1)

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            x = tokens(3, 5, 4, seed=step).float()
            loss = (self.model(x) - x).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return losses

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}


def test_a_resumed_training_is_the_same() -> None:
    whole = Run()
    losses = whole.steps(0, 8)
    first = Run()
    assert first.steps(0, 4) == losses[:4]
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in first.parts().items()}, file)
    file.seek(0)
    saved, second = torch.load(file, weights_only=True), Run()
    for name, part in second.parts().items():
        part.load_state_dict(saved[name])
    assert second.steps(4, 8) == losses[4:]
    assert second.schedule.value == whole.schedule.value == 0


def test_a_loaded_schedule_writes_its_value() -> None:
    schedule, model = Progressive(PRepBN(4), 4), PRepBN(4)
    schedule.step()
    Progressive(model, 9).load_state_dict(schedule.state_dict())
    assert mixes(model) == [0.75]


def test_a_schedule_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no PRepBN"):
        Progressive(nn.Linear(4, 4), 10)
    with pytest.raises(UsageError, match="no steps"):
        Progressive(PRepBN(4), 0)


def test_stages_take_turns() -> None:
    model = nn.Sequential(*(PRepBN(4) for _ in range(4)))
    schedule = Progressive(model, 4, warmup=1, stages=2)
    found = []
    for _ in range(6):
        found.append(mixes(model))
        assert schedule.value == found[-1][-1]
        schedule.step()
    first, second = [1, 1, 0.5, 0, 0, 0], [1, 1, 1, 1, 0.5, 0]
    assert found == [[a, a, b, b] for a, b in zip(first, second, strict=True)]


def test_there_are_no_more_stages_than_norms() -> None:
    model = nn.Sequential(PRepBN(4), PRepBN(4))
    assert Progressive(model, 8, stages=5).stages == 2
    with pytest.raises(UsageError, match="a step at least"):
        Progressive(model, 2, stages=3)


def blended() -> tuple[nn.LayerNorm, Blended]:
    torch.manual_seed(2)
    norm = nn.LayerNorm(4, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, Blended(UN(4, warmup=3), norm.weight.detach(), norm.bias.detach(), norm.eps)


def test_a_blend_is_what_its_mix_says() -> None:
    norm, blend = blended()
    schedule = Progressive(blend, 4)
    x = tokens(3, 5, 4, seed=0).float()
    twin = UN(4, warmup=3)
    for mix in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        expected = mix * norm(x) + (1 - mix) * twin(x)
        torch.testing.assert_close(blend(x), expected)
        schedule.step()
    torch.testing.assert_close(blend.eval()(x), twin.eval()(x))


def test_both_sides_of_a_blend_learn() -> None:
    _, blend = blended()
    Progressive(blend, 4).step()
    blend(tokens(3, 5, 4, seed=0).float()).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in blend.parameters())
