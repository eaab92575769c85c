"""Which outputs have answers that can agree, and what integer files of the others are judged by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.judge.agreement import compare, floats, forfeited, gives_scores
from normfold.report.verdict import AgreementCheck
from tests.nets import Compose, perturb


def conv() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def net(forward: Callable[..., object], **parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return perturb(Compose(forward, stem=conv(), **parts))


def classes() -> nn.Module:
    return net(lambda m, x: m.head(m.stem(x).mean((2, 3))), head=nn.Linear(8, 5))


def probabilities() -> nn.Module:
    return net(lambda m, x: m.head(m.stem(x).mean((2, 3))).softmax(-1), head=nn.Linear(8, 5))


def features() -> nn.Module:
    return net(lambda m, x: m.stem(x).mean((2, 3)))


def normalised() -> nn.Module:
    return net(lambda m, x: F.normalize(m.stem(x).mean((2, 3))))


def one_number() -> nn.Module:
    return net(lambda m, x: m.head(m.stem(x).mean((2, 3))), head=nn.Linear(8, 1))


def image() -> nn.Module:
    return net(lambda m, x: m.head(m.stem(x)), head=nn.Conv2d(8, 3, 3, padding=1))


def several() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.stem(x)  # type: ignore[operator]
        return y, m.head(y.mean((2, 3)))  # type: ignore[operator]

    return net(forward, head=nn.Linear(8, 5))


def answers() -> nn.Module:
    return net(lambda m, x: m.head(m.stem(x).mean((2, 3))).argmax(-1), head=nn.Linear(8, 5))


SCORES = {classes: True, probabilities: True}
OTHERS = (features, normalised, one_number, image, several)


@pytest.mark.parametrize("build", [*SCORES, *OTHERS])
def test_an_integer_file_is_judged_by_what_its_outputs_are(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = normfold.capture(build(), (x,))
    assert gives_scores(graph) == (build in SCORES)
    data = torch.randn(32, 3, 8, 8)
    result = normfold.convert(graph, quantize="int8", data=(data,), output=tmp_path)
    checks = [item for item in result.report.checks if isinstance(item, AgreementCheck)]
    assert len(checks) == 2
    assert all((item.agreement is not None) == (build in SCORES) for item in checks)
    assert all(len(item.snr_db) == (2 if build is several else 1) for item in checks)
    assert all(min(item.snr_db) > 20 for item in checks)
    assert result.report.artefacts[0].verdict.state == "pass"


def test_answers_themselves_are_compared(tmp_path: Path) -> None:
    """An integer output has no noise, but is right or wrong."""
    data, x = torch.randn(64, 3, 8, 8), torch.randn(2, 3, 8, 8)
    result = normfold.convert(
        answers(), quantize="int8", data=(data,), inputs=(x,), output=tmp_path
    )
    checks = [item for item in result.report.checks if isinstance(item, AgreementCheck)]
    assert [(item.samples, item.snr_db) for item in checks] == [(64, ()), (64, ())]
    assert all(item.agreement is not None and item.agreement > 0.9 for item in checks)


def test_a_number_is_compared_as_a_row() -> None:
    """A loss in front of what it is of, as masked autoencoders return it."""
    mine, theirs = (
        floats([torch.tensor(3.0), torch.ones(4, 2)]),
        floats([torch.tensor(2.0), torch.ones(4, 2)]),
    )
    assert [tuple(x.shape) for x in mine] == [(1,), (4, 2)]
    assert compare([mine], [theirs], None, scores=False)["relative_mse"] == pytest.approx(0.25)


def test_what_other_answers_cost() -> None:
    torch.manual_seed(0)
    scores = 3 * torch.randn(4000, 10)
    assert forfeited([[scores]], [[scores]]) == (0.0, 0.0)
    at_random, error = forfeited([[torch.randn(4000, 10)]], [[scores]])
    assert at_random == pytest.approx(1.0, abs=5 * error)
    assert 0 < error < 0.02
    twins = scores.clone()  # the two best of each row change places, and are nearly equal
    first, second = scores.topk(2).indices.T
    rows = torch.arange(4000)
    twins[rows, second] = scores[rows, first] - 1e-3
    swapped = twins.clone()
    swapped[rows, second] += 2e-3
    assert forfeited([[swapped]], [[twins]])[0] < 2e-3


def test_the_cost_hardly_depends_on_the_scale_of_scores() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4000, 10)
    noisy = scores + 0.1 * torch.randn(4000, 10)
    shares = [forfeited([[noisy]], [[scores * scale]])[0] for scale in (1e-3, 1.0, 3.0)]
    assert min(shares) > 1e-3
    assert max(shares) < 3 * min(shares)
    as_they_are = forfeited([[noisy]], [[scores.softmax(-1)]])[0]
    assert as_they_are == pytest.approx(shares[1], rel=1e-3)


@pytest.mark.parametrize(
    ("cost", "ok"), [(None, False), ((0.2, 0.01), False), ((0.02, 0.01), True)]
)
def test_agreement_or_its_cost(cost: tuple[float, float] | None, ok: bool) -> None:
    check = AgreementCheck("k", "a", 1000, 0.8, 20.0, (30.0,), (30.0,), forfeited=cost)
    assert check.ok == ok
    if cost is not None:
        assert f"which costs {cost[0]:.1%}" in check.words
