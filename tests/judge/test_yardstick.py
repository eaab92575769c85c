"""No file is refused for what its runtime does to the original too, for ties, or for small results of sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.judge import Verifier
from normfold.judge.comparison import largest_error
from normfold.judge.inputs import Case
from normfold.judge.runs import run_float64, run_rounded
from tests.nets import Compose, perturb

Change = Callable[[Tensor], Tensor]


def pooled() -> Graph:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return capture(perturb(module), (torch.randn(2, 3, 12, 12),))


def runtime(graph: Graph, change: Change) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A runtime that computes what the graph does, but for what ``change`` makes of every output."""

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = graph.module(*inputs)
        found = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [change(y) for y in found]

    return run


def test_the_order_of_small_scores_is_decided_at_the_size_of_a_sigmoid() -> None:
    """Scores around 3e-4 whose runtime errs by half an ulp of 1: which of them are the best is left out."""
    torch.manual_seed(0)
    graph = capture(
        Compose(lambda net, x: (net.fc(x) - 8).sigmoid().topk(20), fc=nn.Linear(6, 200)).eval(),
        (torch.randn(2, 6),),
    )

    def file(error: float, places: Callable[[Tensor], Tensor] = lambda y: y) -> Any:
        def call(inputs: Sequence[Tensor]) -> list[Tensor]:
            random = torch.Generator().manual_seed(0)
            scores = (graph.original.fc(*inputs) - 8).sigmoid()  # type: ignore[operator, union-attr]
            scores = scores + error * (torch.rand(scores.shape, generator=random) - 0.5)
            values, found = scores.topk(20)
            return [values, places(found)]

        return call

    judging = Verifier(graph)
    assert judging.outputs("file", file(1.2e-7))
    assert not judging.outputs("file", file(1.2e-4))
    assert not judging.outputs("file", file(0.0, lambda found: found.flip(1)))


def off_by(error: float) -> Change:
    return lambda y: y + error * y.abs().amax(1, keepdim=True)


def spoilt(y: Tensor) -> Tensor:
    y = y.clone()
    y.flatten()[0] = float("nan")
    return y


@pytest.mark.parametrize(
    ("file", "plain", "ok"),
    [
        (off_by(1e-4), off_by(1e-4), True),
        (off_by(1e-4), off_by(0.0), False),
        (off_by(3e-4), off_by(1e-4), True),  # within four times it
        (off_by(9e-4), off_by(1e-4), False),
        (off_by(9e-4), off_by(9e-4), True),
        (off_by(2e-3), off_by(2e-3), False),  # no error above 1e-3 is excused
        (spoilt, spoilt, False),
        (off_by(1e-4), spoilt, False),
    ],
)
def test_a_runtime_that_errs_on_the_original_too(file: Change, plain: Change, ok: bool) -> None:
    graph = pooled()
    asked: list[int] = []

    def own() -> Any:
        asked.append(1)
        return runtime(graph, plain)

    check = Verifier(graph).outputs("runtime", runtime(graph, file), plain=own)
    assert check.ok == ok
    assert len(asked) == 1, "made once"
    assert "the original's own export errs there by" in check.note


def test_its_export_is_made_where_it_is_needed() -> None:
    graph = pooled()

    def never() -> Any:
        raise AssertionError("asked for")

    right = runtime(graph, off_by(0.0))
    assert Verifier(graph).outputs("runtime", right, plain=never).ok
    with pytest.raises(AssertionError, match="asked for"):
        Verifier(graph).outputs("runtime", right, plain=never, strict=True)
    wrong = runtime(graph, off_by(0.1))
    assert not Verifier(graph).outputs("runtime", wrong, plain=lambda: None).ok


@pytest.mark.parametrize("behind", [lambda x: x, lambda x: x.flatten(1), lambda x: x.amax(1)])
@pytest.mark.parametrize("make", [torch.sigmoid, lambda x: torch.softmax(x, 1)])
def test_a_small_probability_is_as_good_as_half_an_ulp_of_one(
    make: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    module = Compose(lambda m, x: behind(make(m.conv(x))[:, 1:]), conv=nn.Conv2d(3, 5, 1))
    with torch.no_grad():
        conv: Any = module.conv
        conv.bias.copy_(torch.tensor([8.0, -8.0, -8.0, -8.0, -9.0]))
    graph = capture(module.eval(), (torch.randn(2, 3, 4, 4),))
    assert Verifier(graph).outputs("runtime", runtime(graph, lambda y: y + 1e-7)).ok
    assert not Verifier(graph).outputs("runtime", runtime(graph, lambda y: y + 1e-5)).ok
    other = capture(nn.Conv2d(3, 5, 1).eval(), (1e-3 * torch.randn(2, 3, 4, 4),))
    close = runtime(other, lambda y: y + 1e-4 * y.abs().amax())
    assert not Verifier(other).outputs("runtime", close).ok, "no size of an op"


class Offset(nn.Module):
    """Cancels: of zeros it is exact by luck, where another order of the ops errs by half an ulp of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        nn.init.constant_(self.conv.bias, 0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return (y + 64.3) - 64.3 + y


def test_one_lucky_draw_is_no_yardstick() -> None:
    torch.manual_seed(0)
    graph = capture(Offset().eval(), (torch.randn(2, 3, 4, 4),))
    assert Verifier(graph).outputs("runtime", runtime(graph, lambda y: y + 8e-6)).ok
    assert not Verifier(graph).outputs("runtime", runtime(graph, lambda y: y + 2e-3)).ok
    assert not Verifier(graph).outputs("runtime", runtime(graph, lambda y: y * (1 + 3e-4))).ok


class Bright(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 1.7 * 0.3).mean((2, 3))


def test_equal_numbers_err_alike() -> None:
    """On a grey image no mean over the positions takes the errors of a kernel off."""
    graph = capture(Bright().eval(), (torch.randn(2, 64, 32, 32),))
    grey = [Case("grey", (torch.rand(2, 64, 1, 1).expand(2, 64, 32, 32).clone(),))]
    ((exact,),) = run_float64(graph, grey)
    apart, together = (
        largest_error(exact, run_rounded(graph, grey, 0, 1e-6, alike)[0][0])[0]
        for alike in (False, True)
    )
    assert apart < 1.5e-6, "the error of the mean itself"
    assert together > 2.5e-6, "those of the products as well"


class Detector(nn.Module):
    """Scores of positions, of which the best are chosen with their boxes and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.out = nn.Conv2d(8, 7, 1)
        self.register_buffer("grid", torch.randn(1, 16, 2))

    def forward(self, x: Tensor) -> Any:
        y = self.out(self.features(x)).flatten(2).transpose(1, 2).sigmoid()
        boxes = torch.cat([y[..., :2] + self.grid, y[..., 2:4]], -1)
        score, label = y[..., 4:].max(-1)
        top, index = score.topk(4, 1)
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)), top, label.gather(1, index)


def detector() -> Graph:
    torch.manual_seed(0)
    return capture(perturb(Detector()), (torch.randn(2, 3, 8, 8),))


def other_ties(graph: Graph, everywhere: bool = False, score: float = 0.0) -> Any:
    """The same network in a runtime that takes others of equal scores."""

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        (x,) = inputs
        random = torch.Generator().manual_seed(5)
        boxes, top, label = graph.module(x + 1e-7 * torch.randn(x.shape, generator=random))
        same = x.flatten(1).std(1) == 0
        return [boxes.flip(1) if everywhere else boxes, top + score * same[:, None], label]

    return run


def test_what_is_tied_is_not_judged() -> None:
    """On an image of zeros all positions but those at the border score alike: any of their boxes is right."""
    graph = detector()
    check = Verifier(graph).outputs("runtime", other_ties(graph))
    assert check.ok
    assert "are decided by rounding, and not judged" in check.note
    assert not Verifier(graph).outputs("runtime", other_ties(graph, everywhere=True)).ok
    assert not Verifier(graph).outputs("runtime", other_ties(graph, score=0.01)).ok, (
        "scores are not"
    )


@pytest.mark.parametrize("wrong", [False, True])
def test_answers_that_float64_itself_does_not_decide(wrong: bool) -> None:
    """argmax over two equal channels: either answer; and over others only the right one."""

    def answer(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.cat([y[:, :1], y], 1).argmax(1)

    torch.manual_seed(0)
    module = Compose(answer, conv=nn.Conv2d(3, 3, 1))
    graph = capture(module.eval(), (torch.randn(2, 3, 4, 4),))

    def other(y: Tensor) -> Tensor:
        return torch.where(y == 0, 1, y) if not wrong else (y + 1) % 4

    assert Verifier(graph).outputs("runtime", runtime(graph, other)).ok != wrong


def test_row_error_and_limit_of_a_line_belong_together(capsys: Any) -> None:
    from rich.console import Console

    from normfold.report import Check, OutputCheck
    from normfold.report.text import print_checks

    loose = OutputCheck("loose", "x100", 1e-3, 3e-3, 4e-3, 1.0)
    tight = OutputCheck("tight", "random", 1e-8, 9e-7, 1e-6, 1.0)
    print_checks([Check("rounding", (loose, tight))], Console(width=200))
    text = capsys.readouterr().out
    assert "9.00e-07" in text
    assert "tight / random" in text
    assert "3.00e-03" not in text
