"""fold-affine{split-norms=true}: a norm's bias goes although its gain stays, for an RMSNorm has no bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.graph import op_name
from tests.nets import conv
from tests.passes.centred import TOKENS, D, Held, network
from tests.passes.judge import Outcome, judge, right, untouched

SPLIT = "fold-affine{split-norms=true}"


def fold(net: nn.Module, *inputs: Tensor, step: str = SPLIT) -> Outcome:
    return right(judge(capture(net, inputs), f"canonicalize,{step}"))


def left(outcome: Outcome) -> list[tuple[bool, bool]]:
    """(has a gain, has a bias) of every affine that is left behind a norm."""
    return [
        (node.args[1] is not None, node.args[2] is not None)
        for node in outcome.after.nodes
        if op_name(node) == "normfold::channel_affine"
    ]


def net(wiring: Any, **more: nn.Module) -> nn.Module:
    parts: dict[str, nn.Module] = {
        "norm1": nn.LayerNorm(D),
        "norm2": nn.LayerNorm(D),
        "f": nn.Linear(D, D),
        "g": nn.Linear(D, D),
        "out": nn.Linear(D, D),
    }
    return network(wiring, **{**parts, **more})


def test_the_bias_goes_into_the_reader_of_a_sum() -> None:
    """out(f(x) + a n + b): b goes through the sum into out's bias; a may not, f has its own scale."""
    module = net(lambda m, x: m.out(F.gelu(x) + m.norm1(x)))
    outcome = fold(module, torch.randn(TOKENS))
    assert left(outcome) == [(True, False)]
    decline = outcome.folding.declined[0]
    assert (decline.site, bool(decline.node)) == ("norm1", True)


def test_without_the_option_it_stays() -> None:
    module = net(lambda m, x: m.out(F.gelu(x) + m.norm1(x)))
    outcome = fold(module, torch.randn(TOKENS), step="fold-affine")
    assert left(outcome) == [(True, True)]


def test_two_norms_on_one_sum() -> None:
    """out(a m + b + c n + d): a goes on into the reader and 1 / a into c, both biases into the reader.

    Behind a gelu the bias of one ends in that of the other, and is not handed back.
    """
    outcome = fold(net(lambda m, x: m.out(m.norm1(x) + m.norm2(m.g(x)))), torch.randn(TOKENS))
    assert left(outcome) == [(True, False)]
    stuck = fold(net(lambda m, x: F.gelu(m.norm1(x) + m.norm2(m.g(x)))), torch.randn(TOKENS))
    assert sorted(left(stuck)) == [(True, False), (True, True)], "one bias for two"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_other_bias_takes_it_with_its_sign(sign: int) -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return torch.tanh(torch.sub(m.norm1(x), m.norm2(m.g(x)), alpha=-2.0 * sign))

    outcome = fold(net(wiring), torch.randn(TOKENS))
    assert sorted(left(outcome)) == [(True, False), (True, True)]


def test_a_whole_affine_is_preferred() -> None:
    """Where gain and bias fold, they do, with the option as without."""
    module = net(lambda m, x: m.out(m.norm1(x)))
    assert left(fold(module, torch.randn(TOKENS))) == []
    assert left(fold(module, torch.randn(TOKENS), step="fold-affine")) == []


def test_a_norm_without_a_gain() -> None:
    """Then the bias is all there is, and nothing is declined."""
    module = net(lambda m, x: m.out(F.gelu(x) + F.layer_norm(x, [D], None, m.b())), b=Held(D))
    outcome = fold(module, torch.randn(TOKENS))
    assert left(outcome) == []
    assert not outcome.declined


def test_other_norms_are_not_split() -> None:
    """A batch norm is no norm of this kind: its affine behaves as before."""

    def wiring(m: Any, x: Tensor) -> Any:
        return m.conv(F.gelu(x) + m.norm(F.gelu(x)))

    module = network(wiring, conv=conv(), norm=nn.BatchNorm2d(4))
    with_it = fold(module, torch.randn(2, 4, 5, 6))
    without = fold(module, torch.randn(2, 4, 5, 6), step="fold-affine")
    assert left(with_it) == left(without)


@pytest.mark.parametrize("reader", ["gelu", "output", "rows"])
def test_what_the_bias_cannot_enter(reader: str) -> None:
    """A non-linear op, the network's output, a linear over the tokens without the right bias."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = m.norm1(x)
        if reader == "rows":
            return F.gelu((y.transpose(1, 2) @ m.mix()).transpose(1, 2))
        return F.gelu(y) if reader == "gelu" else y

    outcome = fold(net(wiring, mix=Held(5, 5)), torch.randn(TOKENS))
    assert (True, True) in left(outcome)
    assert outcome.folding.declined


def test_idempotent() -> None:
    module = net(lambda m, x: m.out(F.gelu(x) + m.norm1(x)))
    untouched(capture(module, (torch.randn(TOKENS),)), f"canonicalize,{SPLIT},{SPLIT}")


def test_several_readers() -> None:
    """All of them take the bias, or none."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = m.norm1(x)
        return m.out(F.gelu(x) + y) + m.f(y)

    assert left(fold(net(wiring), torch.randn(TOKENS))) == [(True, False)]

    def one_stuck(m: Any, x: Tensor) -> Any:
        y = m.norm1(x)
        return m.out(F.gelu(x) + y) + F.gelu(y)

    assert left(fold(net(one_stuck), torch.randn(TOKENS))) == [(True, True)]
