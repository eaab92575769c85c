"""The test kit: every check passes on a right pass, and fails on one that breaks its promise, and says how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfold
from examples.own_pass import DropDoubleRelu
from examples.plugin.normfold_plugin_example import FoldScale
from normfold import testing
from normfold.errors import PassError, UsageError
from normfold.rewrite import Decline, Match, Reason, parse
from tests.nets import Compose, RepBlock, Residual
from tests.testing import broken

IMAGES = (torch.randn(2, 3, 8, 8),)


def scaled() -> nn.Module:
    """Two scales behind two layers."""
    torch.manual_seed(0)
    return Compose(
        lambda m, x: m.head(torch.relu(0.5 * m.conv(x)).mean((2, 3))) / 2.5,
        conv=nn.Conv2d(3, 4, 3),
        head=nn.Linear(4, 5),
    )


def reused() -> nn.Module:
    """One scale that is folded, and one that cannot be."""
    torch.manual_seed(0)

    def wiring(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = m.head((0.5 * m.conv(x)).mean((2, 3)))
        return scores, scores / 2.5

    return Compose(wiring, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 5))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


def fails(pattern: str, call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError, match=pattern) as raised:
        call(*args, **options)
    return str(raised.value)


def test_the_public_names() -> None:
    for name in testing.__all__:
        assert getattr(testing, name).__module__.startswith("normfold.testing."), name
        assert getattr(testing, name).__doc__, name


# -- right passes ------------------------------------------------------------------------------------


def test_a_right_pass_keeps_every_promise() -> None:
    made = testing.check(FoldScale(), scaled(), IMAGES)
    assert made == ("reads_only", "idempotent", "equivalent", "limit", "mutants")


@pytest.mark.parametrize(
    ("text", "network", "shape"),
    [
        ("fold-affine", Residual(), (2, 4, 5, 6)),
        ("canonicalize", RepBlock(), (2, 4, 5, 6)),
    ],
)
def test_passes_of_the_product(text: str, network: nn.Module, shape: tuple[int, ...]) -> None:
    (item,) = parse(text)  # what it requires, `canonicalize`, runs in front of it by itself
    assert "limit" in testing.check(item, network, (torch.randn(shape),))


def test_a_pass_that_only_removes() -> None:
    """Nothing that it wrote is left but who reads what: faults are put there."""
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 2))
    testing.check(DropDoubleRelu(), network, (torch.randn(2, 8),))


def test_a_graph_is_taken_as_it_is() -> None:
    graph = normfold.capture(scaled().eval(), IMAGES)
    weight = graph.module.state_dict()["head.weight"].clone()
    assert testing.equivalent(FoldScale(), graph).rewrites == 2
    assert torch.equal(graph.module.state_dict()["head.weight"], weight)


def test_the_network_of_the_caller_is_left_alone() -> None:
    network = scaled().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    testing.equivalent(FoldScale(), network, IMAGES)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_passes_in_front() -> None:
    (item,) = parse("fold-affine")
    inputs = (torch.randn(2, 4, 5, 6),)
    with pytest.raises(UsageError, match="wants a graph that is canonical"):
        testing.equivalent(item, Residual(), inputs, before="")
    testing.equivalent(item, Residual(), inputs, before="canonicalize")


# -- perturbed ---------------------------------------------------------------------------------------


def test_no_initial_value_is_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU())
    network.register_parameter("scale", nn.Parameter(torch.full((4, 1, 1), 1e-6)))
    nn.init.zeros_(network[0].bias)  # type: ignore[arg-type]
    made = testing.perturbed(network)
    values = made.state_dict()
    for name, value in network.state_dict().items():
        same = torch.equal(value, values[name])
        assert same == (name in ("0.weight", "1.num_batches_tracked")), name
    assert not made.training
    assert (values["1.running_var"] > 0).all()
    assert (values["scale"] >= 0.5e-6).all()
    assert (values["scale"] <= 1.5e-6).all()
    gains = testing.perturbed(nn.BatchNorm2d(64)).state_dict()["weight"]
    assert (gains < 0).any()
    assert (gains > 0).any()
    again = testing.perturbed(network).state_dict()
    assert all(torch.equal(value, values[name]) for name, value in again.items())
    other = testing.perturbed(network, seed=1).state_dict()
    assert not torch.equal(other["1.bias"], values["1.bias"])


def test_a_bias_that_starts_at_zero_hides_nothing() -> None:
    network = scaled()
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(value)
    fails("does not keep", testing.equivalent, broken.ForgetsTheBias(), network, IMAGES)
    graph = normfold.capture(network.eval(), IMAGES)
    assert testing.equivalent(broken.ForgetsTheBias(), graph).rewrites == 2  # it would have


# -- equivalent --------------------------------------------------------------------------------------


def test_a_factor_that_is_forgotten() -> None:
    told = fails("does not keep", testing.equivalent, broken.ForgetsTheBias(), scaled(), IMAGES)
    assert told.startswith(
        "`fold-scale` does not keep what the network computes\n  at conv, head\n"
    )
    assert "is not the original's" in told
    assert "(algebra)" in told
    assert "(rounding)" in told


def test_bits_that_only_float32_loses() -> None:
    told = fails("does not keep", testing.equivalent, broken.LosesBits(), scaled(), IMAGES)
    assert "(rounding)" in told
    assert "(algebra)" not in told


def test_nothing_to_judge_is_a_failure() -> None:
    told = fails("nothing was checked", testing.equivalent, FoldScale(), plain(), IMAGES)
    assert "found: 0 rewritten, declined: nothing" in told
    fails("nothing was checked", testing.check, FoldScale(), plain(), IMAGES)
    fails("nothing was checked", testing.idempotent, FoldScale(), plain(), IMAGES)
    fails("nothing was checked", testing.mutants, FoldScale(), plain(), IMAGES)


def test_tensors_that_are_changed_in_place() -> None:
    told = fails("in place", testing.equivalent, broken.ScalesInPlace(), scaled(), IMAGES)
    assert "at conv.bias, conv.weight, head.bias, head.weight" in told


def test_a_shape_that_is_not_true() -> None:
    told = fails(
        "a shape or a type", testing.equivalent, broken.LeavesAWrongShape(), scaled(), IMAGES
    )
    assert "conv2d" in told


def test_the_graph_that_was_given() -> None:
    broken.ChangesTheGivenGraph.seen.clear()
    network, item = normfold.capture(scaled().eval(), IMAGES), broken.ChangesTheGivenGraph()
    broken.ChangesTheGivenGraph.seen.append(network)
    fails("changed the graph that was copied", testing.equivalent, item, network)


def test_what_cannot_be_compared() -> None:
    changing = broken.AnotherFunction()
    fails("changes the function", testing.equivalent, changing, scaled(), IMAGES)
    made = testing.check(changing, scaled(), IMAGES)
    assert made == ("reads_only", "idempotent", "limit")
    noisy = Compose(lambda m, x: m.fc(x) * 2 + torch.rand_like(x), fc=nn.Linear(4, 4))
    fails("cannot be judged", testing.equivalent, FoldScale(), noisy, (torch.randn(2, 4),))


def test_a_pass_that_breaks_is_not_an_assertion() -> None:
    class Breaks(FoldScale):
        def check(self, graph: Any, match: Match) -> Match | Decline:
            raise KeyError("scale")

    with pytest.raises(PassError, match="failed while checking a site"):
        testing.equivalent(Breaks(), scaled(), IMAGES)


# -- declines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["NF103", "output-reused", Reason.OUTPUT_REUSED])
def test_the_code_of_a_decline(code: str | Reason) -> None:
    report = testing.declines(FoldScale(), reused(), IMAGES, code=code)
    assert report.rewrites == 1
    testing.declines(FoldScale(), reused(), IMAGES, code=code, site="head")


def test_another_code() -> None:
    call, item = testing.declines, broken.OtherCode()
    told = fails("does not decline with NF103", call, item, reused(), IMAGES, code="NF103")
    assert "found: 1 rewritten, declined: head for NF105" in told
    fails("NF103", call, FoldScale(), reused(), IMAGES, code="NF103", site="conv")
    fails("NF103", call, FoldScale(), scaled(), IMAGES, code="NF103")
    with pytest.raises(UsageError, match="no such code"):
        call(FoldScale(), reused(), IMAGES, code="NF99")


def test_a_decline_that_changes_the_graph() -> None:
    def wiring(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = m.fc(x)
        return scores, scores / 2.5

    network, inputs = Compose(wiring, fc=nn.Linear(4, 4)), (torch.randn(2, 4),)
    testing.declines(FoldScale(), network, inputs, code="NF103")
    told = fails(
        "though it declined everything",
        testing.declines,
        broken.RewritesInCheck(),
        network,
        inputs,
        code="NF103",
    )
    assert "-%div = div.Tensor(%linear, 2.5)" in told


# -- idempotent, no_op -------------------------------------------------------------------------------


def test_a_second_run_that_changes_more() -> None:
    testing.equivalent(broken.OneMoreRelu(), plain(), IMAGES)  # and every run is right
    told = fails("a second time", testing.idempotent, broken.OneMoreRelu(), plain(), IMAGES)
    assert "  at one more\n" in told
    assert "+%relu" in told


def test_a_second_run_that_says_it_changed_something() -> None:
    told = fails("a second time", testing.idempotent, broken.OnlyCounts(), scaled(), IMAGES)
    assert "the same text, and 2 rewritten" in told


def test_a_network_that_does_not_concern_the_pass() -> None:
    testing.no_op(FoldScale(), plain(), IMAGES)
    fails("does not concern it", testing.no_op, FoldScale(), scaled(), IMAGES)
    told = fails("matched a site", testing.no_op, FoldScale(), reused(), IMAGES)
    assert "head for NF103" in told
    told = fails("does not concern it", testing.no_op, broken.EditsWithoutAMatch(), plain(), IMAGES)
    assert "no edit was recorded" in told
    assert "-%relu = relu(%conv2d)" in told


# -- reads_only --------------------------------------------------------------------------------------


def test_what_only_reads() -> None:
    testing.reads_only(FoldScale(), scaled(), IMAGES)
    told = fails("in `match`", testing.reads_only, broken.RewritesInMatch(), scaled(), IMAGES)
    assert "+%mul" in told
    told = fails("in `check`", testing.reads_only, broken.RewritesInCheck(), scaled(), IMAGES)
    assert "  at conv\n" in told
    fails("sites or states", testing.reads_only, broken.AddsASiteInCheck(), scaled(), IMAGES)
    fails("without a `Reason`", testing.reads_only, broken.DeclinesInWords(), scaled(), IMAGES)


# -- limit -------------------------------------------------------------------------------------------


def test_limits() -> None:
    testing.limit(FoldScale(), scaled(), IMAGES)
    told = fails("ignores its limit", testing.limit, broken.IgnoresTheLimit(), scaled(), IMAGES)
    assert "at limit=0\n  found: 2 rewritten" in told
    told = fails("the first sites", testing.limit, broken.LimitFromBehind(), scaled(), IMAGES)
    assert "at limit=1\n  found: head; a whole run begins with conv" in told
    told = fails("needs two", testing.limit, broken.AllInOneRewrite(), scaled(), IMAGES)
    assert "1 matches, 1 rewritten" in told
    told = fails("changed nothing", testing.limit, broken.OnlyCounts(), scaled(), IMAGES)
    assert "at limit=1\n  found: conv" in told
    told = fails("does not keep", testing.limit, broken.ForgetsTheBias(), scaled(), IMAGES)
    assert "at limit=1: conv" in told


# -- golden ------------------------------------------------------------------------------------------


def test_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMFOLD_UPDATE_GOLDEN", raising=False)
    file, call = tmp_path / "golden" / "scale.txt", testing.golden
    told = fails("has no golden file", call, FoldScale(), reused(), IMAGES, file=file)
    assert "NORMFOLD_UPDATE_GOLDEN=1" in told
    call(FoldScale(), reused(), IMAGES, file=file, update=True)
    call(FoldScale(), reused(), IMAGES, file=file)
    assert file.read_text().endswith("\napplied: conv\ndeclined: head NF103\n")
    told = fails("another graph", call, broken.ForgetsTheBias(), reused(), IMAGES, file=file)
    assert "-$mul_tensor_1 = mul.Tensor($conv_bias, 0.5)" in told
    assert str(file) in told
    told = fails("another graph", call, broken.OtherCode(), reused(), IMAGES, file=file)
    assert "-declined: head NF103\n+declined: head NF105" in told
    fails("another graph", testing.check, FoldScale(), scaled(), IMAGES, file=file)
    monkeypatch.setenv("NORMFOLD_UPDATE_GOLDEN", "1")
    call(broken.OtherCode(), reused(), IMAGES, file=file)
    assert "NF105" in file.read_text()


# -- mutants -----------------------------------------------------------------------------------------


def test_faults_are_caught() -> None:
    found = testing.mutants(FoldScale(), scaled(), IMAGES, count=100)
    assert not found.missed
    assert not found.same
    words = "\n".join(found.caught)
    for text in (
        "is left",
        "of other sign",
        "times 1.001",
        "in place of",
        "div is",
        "without bias",
    ):
        assert text in words, text


def test_a_budget_that_lets_faults_through() -> None:
    told = fails("that the checks miss", testing.mutants, broken.Generous(), scaled(), IMAGES)
    assert "times 1.001" in told


def test_a_network_that_shows_nothing() -> None:
    network = Compose(
        lambda m, x: m.out(m.fc(x) * 2.0) * 0.0 + x, fc=nn.Linear(4, 4), out=nn.Linear(4, 4)
    )
    inputs = (torch.randn(2, 4),)
    testing.equivalent(FoldScale(), network, inputs)
    told = fails("this network shows none", testing.mutants, FoldScale(), network, inputs)
    assert "times 1.001" in told


def test_a_pass_that_is_wrong_from_the_start() -> None:
    fails("without any fault", testing.mutants, broken.ForgetsTheBias(), scaled(), IMAGES)


def test_check_finds_each_broken_promise() -> None:
    kinds = (
        (broken.ForgetsTheBias, "does not keep"),
        (broken.RewritesInCheck, "in `check`"),
        (broken.OnlyCounts, "a second time"),
        (broken.LimitFromBehind, "the first sites"),
        (broken.Generous, "that the checks miss"),
    )
    for kind, pattern in kinds:
        fails(pattern, testing.check, kind(), scaled(), IMAGES)
