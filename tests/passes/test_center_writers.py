"""center-stream: whatever can write a stream is centred where it is written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.centred import (
    TOKENS,
    Attention,
    Branch,
    Conv1D,
    D,
    Held,
    LayerNorm2d,
    center,
    centring_ops,
    converts,
    network,
    pre_norm,
)

IDS = torch.randint(0, 11, (2, 5))
IMAGE = (2, 3, 8, 8)


def blocks(m: Any, x: Tensor) -> Any:
    x = x + m.a(x)
    return m.head(m.norm(x + m.b(x)))


def plain(m: Any, x: Tensor) -> Any:
    return blocks(m, m.stem(x))


# -- linears and embeddings -------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_linears(kind: Any, bias: bool) -> None:
    stem = Conv1D(D, D) if kind is Conv1D else nn.Linear(D, D, bias=bias)
    branch = nn.Sequential(nn.LayerNorm(D, bias=bias), kind(D, 8), nn.GELU(), kind(8, D))
    converts(center(pre_norm(plain, stem=stem, a=branch), torch.randn(TOKENS)), rms=3)


def test_products_with_a_parameter() -> None:
    """x @ W, and W @ x with the features in front."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = x @ m.w()
        return blocks(m, x + (m.w() @ x.transpose(1, 2)).transpose(1, 2))

    outcome = center(pre_norm(wiring, w=Held(D, D)), torch.randn(TOKENS))
    converts(outcome, rms=3, ops=1)  # one matrix for two roles, so it is not to be edited

    def apart(m: Any, x: Tensor) -> Any:
        y = m.w() @ x.transpose(1, 2)
        return blocks(m, x @ m.v() + y.transpose(1, 2))

    converts(center(pre_norm(apart, w=Held(D, D), v=Held(D, D)), torch.randn(TOKENS)), rms=3)


def test_embeddings_of_tokens_positions_and_types() -> None:
    def wiring(m: Any, ids: Tensor) -> Any:
        places = torch.arange(ids.shape[1])
        return blocks(m, m.words(ids) + m.places(places) + m.kinds(torch.zeros_like(ids)))

    tables = {
        "words": nn.Embedding(11, D, padding_idx=0),
        "places": nn.Embedding(9, D),
        "kinds": nn.Embedding(2, D),
    }
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    for dynamic in ("batch", ((axes,),)):
        converts(center(pre_norm(wiring, **tables), IDS, dynamic=dynamic), rms=3)


def test_a_norm_behind_the_embedding() -> None:
    """BLOOM: its gain and bias are on the stream, so one op follows them; the norm itself converts too."""

    def wiring(m: Any, ids: Tensor) -> Any:
        return blocks(m, m.first(m.words(ids)))

    net = pre_norm(wiring, words=nn.Embedding(11, D), first=nn.LayerNorm(D))
    outcome = converts(center(net, IDS), rms=4, ops=1)
    assert centring_ops(outcome)[0].args[0].name.startswith("add")  # type: ignore[union-attr]


@pytest.mark.parametrize("learned", [True, False])
def test_positions(learned: bool) -> None:
    """A parameter, or a buffer of sines, on tokens of fixed number or a part of it."""
    table = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.1, 0.01]))
    sines = torch.cat([table.sin(), table.cos()], -1)[None]

    def wiring(m: Any, x: Tensor) -> Any:
        places = m.places() if learned else sines
        return blocks(m, m.stem(x) + places[:, : x.shape[1]])

    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim("tokens", max=9)}
    for dynamic in ("batch", ((axes,),)):
        net = pre_norm(wiring, places=Held(1, 9, D))
        converts(center(net, torch.randn(TOKENS), dynamic=dynamic), rms=3)


def test_sines_of_run_time_length_take_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * torch.tensor(
            [1.0, 0.1, 0.01]
        )
        return blocks(m, m.stem(x) + torch.cat([angles.sin(), angles.cos()], -1))

    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    outcome = center(pre_norm(wiring), torch.randn(TOKENS), dynamic=((axes,),))
    converts(outcome, rms=3, ops=1)


def test_a_constant_of_integers_takes_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x) + torch.arange(30).reshape(5, 6))

    converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=3, ops=1)


# -- images and tokens ------------------------------------------------------------------------------


def patches(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.patch(x).flatten(2).transpose(1, 2)
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("registers", [0, 2])
def test_vision_transformer(bias: bool, registers: int) -> None:
    """Patches by a convolution, class and register tokens, positions, the class token's head."""

    def wiring(m: Any, x: Tensor) -> Any:
        tokens = [m.token().expand(x.shape[0], -1, -1)]
        if registers:
            tokens.append(m.registers().expand(x.shape[0], -1, -1))
        x = torch.cat([*tokens, patches(m, x)], 1) + m.places()
        x = x + m.a(x)
        x = x + m.b(x)
        return m.head(m.norm(x)[:, 0])

    net = pre_norm(
        wiring,
        patch=nn.Conv2d(3, D, 4, 4, bias=bias),
        token=Held(1, 1, D),
        registers=Held(1, 2, D),
        places=Held(1, 5 + registers, D),
        a=Attention(),
    )
    outcome = converts(center(net, torch.randn(IMAGE)), rms=3)
    more = torch.randn(3, 3, 8, 8)
    assert torch.allclose(outcome.baked(more), net(more), atol=1e-5)


def test_mask_tokens() -> None:
    """Chosen by a mask, filled with zero, or mixed in by a product."""

    def chosen(m: Any, x: Tensor) -> Any:
        return blocks(m, torch.where(x[..., :1] > 0, m.stem(x), m.token()))

    def filled(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x).masked_fill(x[..., :1] > 0, 0.0))

    def mixed(m: Any, x: Tensor) -> Any:
        w = (x[..., :1] > 0).to(x.dtype)
        return blocks(m, m.stem(x) * (1 - w) + m.token() * w)

    for wiring in (chosen, filled, mixed):
        converts(center(pre_norm(wiring, token=Held(1, 1, D)), torch.randn(TOKENS)), rms=3)


def test_filling_with_another_number_takes_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x).masked_fill(x > 0, 0.0))

    converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=3, ops=1)


@pytest.mark.parametrize("groups", [1, 2, D])
def test_convolutions(groups: int) -> None:
    """A dense one is centred; where groups of it write parts of the features, an op follows."""

    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.conv(x.transpose(1, 2)).transpose(1, 2))

    net = pre_norm(wiring, conv=nn.Conv1d(D, D, 3, padding=1, groups=groups))
    converts(center(net, torch.randn(TOKENS)), rms=3, ops=int(groups > 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_first_norms_written_by_hand(transposed: bool) -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return m.out(m.norm(m.conv(x)))

    conv: nn.Module = nn.Conv2d(3, D, 3)
    if transposed:
        conv = nn.ConvTranspose2d(3, D, 2, 2)
    net = network(wiring, conv=conv, norm=LayerNorm2d(), out=nn.Conv2d(D, 4, 1))
    converts(center(net, torch.randn(IMAGE)), rms=1)


def test_the_stem_of_whisper_takes_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = F.gelu(m.conv2(F.gelu(m.conv1(x)))).transpose(1, 2)
        return blocks(m, x + m.places())

    net = pre_norm(
        wiring,
        conv1=nn.Conv1d(3, D, 3, padding=1),
        conv2=nn.Conv1d(D, D, 3, 2, padding=1),
        places=Held(5, D),
    )
    outcome = converts(center(net, torch.randn(2, 3, 10)), rms=3, ops=1)
    (op,) = centring_ops(outcome)
    assert op.args[0].name.startswith(("gelu", "add"))  # type: ignore[union-attr]


def test_inputs_of_the_network_take_one_op_each() -> None:
    def wiring(m: Any, x: Tensor, y: Tensor) -> Any:
        return blocks(m, m.stem(x) + y)

    converts(center(pre_norm(wiring), torch.randn(TOKENS), torch.randn(TOKENS)), rms=3, ops=1)

    def raw(m: Any, x: Tensor, y: Tensor) -> Any:
        x = x + m.a(x)
        return blocks(m, x + y + m.b(x))

    converts(center(pre_norm(raw), torch.randn(TOKENS), torch.randn(TOKENS)), rms=5, ops=2)


# -- scales behind a writer -------------------------------------------------------------------------


def test_layer_scale_in_every_spelling() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x) * m.s1()
        x = x + m.s2() * m.b(x)
        x = x + F.linear(m.c(x), torch.diag(m.s1()))
        x = x + m.e(x).mul(m.s3())
        return m.head(m.norm(x))

    net = pre_norm(wiring, s1=Held(D), s2=Held(1, 1, D), s3=Held(D), c=Branch(), e=Attention())
    converts(center(net, torch.randn(TOKENS)), rms=5)


def test_layer_scale_of_channels_first() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = m.conv(x)
        y = m.down(F.gelu(m.up(m.norm1(x))))
        return m.out(m.norm2(x + m.s() * y))

    net = network(
        wiring,
        conv=nn.Conv2d(3, D, 3),
        norm1=LayerNorm2d(),
        up=nn.Conv2d(D, 8, 1),
        down=nn.Conv2d(8, D, 1),
        s=Held(D, 1, 1),
        norm2=LayerNorm2d(),
        out=nn.Conv2d(D, 4, 1),
    )
    converts(center(net, torch.randn(IMAGE)), rms=2)


def test_scales_by_numbers_and_by_rows() -> None:
    """Numbers, one number per row (a gate, a stochastic-depth mask): P does not see them."""

    def wiring(m: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(m.gate(x)).mean((1, 2), keepdim=True)
        mask = (x[:, :1, :1] > 0).to(x.dtype)
        x = m.stem(x) * math.sqrt(D)
        x = x + m.a(x) * gate
        x = x + m.b(x).div(0.9) * mask
        return m.head(m.norm(x / gate - 0.5 * x))

    converts(center(pre_norm(wiring, gate=nn.Linear(D, 1)), torch.randn(TOKENS)), rms=3)


def test_a_gate_per_feature_takes_one_op() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x) * torch.sigmoid(m.gate(x)))

    outcome = center(pre_norm(wiring, gate=nn.Linear(D, D)), torch.randn(TOKENS))
    converts(outcome, rms=3, ops=1)


# -- shared weights ---------------------------------------------------------------------------------


def test_a_layer_that_is_called_twice_is_centred_once() -> None:
    """ALBERT, pre-LN: every layer writes with the same weights, which stay one."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for _ in range(3):
            x = x + m.a(x)
        return m.head(m.norm(x))

    outcome = converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=4)
    assert outcome.baked.parameter_bytes() <= outcome.before.parameter_bytes()


def test_a_layer_that_also_writes_elsewhere_is_not_edited() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x)) + m.head(F.gelu(m.stem(x + 1)))

    outcome = converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=3, ops=1)
    assert outcome.baked.parameter_bytes() <= outcome.before.parameter_bytes()


# -- experts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
def test_experts(stacked: bool) -> None:
    """Every expert computes, a gate weighs the sum: a loop over linears, or stacked matrices and bmm."""

    def looped(m: Any, y: Tensor, gates: Tensor) -> Any:
        parts = [m.e0(y) * gates[..., :1], m.e1(y) * gates[..., 1:]]
        return parts[0] + parts[1]

    def batched(m: Any, y: Tensor, gates: Tensor) -> Any:
        flat = y.reshape(1, -1, D).expand(2, -1, -1)
        hidden = F.gelu(torch.bmm(flat, m.up()))
        parts = (torch.bmm(hidden, m.down()) + m.bias()).reshape(2, *y.shape)
        return (parts * gates.permute(2, 0, 1)[..., None]).sum(0)

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.inner(x)
        gates = m.gate(y).softmax(-1)
        x = x + (batched if stacked else looped)(m, y, gates)
        return m.head(m.norm(x))

    mlp = [nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.Linear(8, D)) for _ in range(2)]
    net = pre_norm(
        wiring,
        inner=nn.LayerNorm(D),
        gate=nn.Linear(D, 2),
        **({} if stacked else {"e0": mlp[0], "e1": mlp[1]}),
        **({"up": Held(2, D, 8), "down": Held(2, 8, D), "bias": Held(2, 1, D)} if stacked else {}),
    )
    converts(center(net, torch.randn(TOKENS)), rms=2)
