"""center-stream: who may read a centred stream, how it may move, and norms that read private tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.centred import (
    TOKENS,
    Attention,
    Branch,
    D,
    Held,
    center,
    centring,
    converts,
    network,
    pre_norm,
)

IMAGE = (2, 3, 8, 8)


def blocks(m: Any, x: Tensor) -> Any:
    x = x + m.a(x)
    return m.head(m.norm(x + m.b(x)))


# -- blocks -----------------------------------------------------------------------------------------


def parallel(m: Any, x: Tensor) -> Any:
    """One norm for both branches (GPT-J), then two (GPT-NeoX)."""
    x = m.stem(x)
    y = m.one(x)
    x = x + m.f(y) + m.g(F.gelu(y @ m.w()))
    x = x + m.a(x) + m.b(x)
    return m.head(m.norm(x))


def test_parallel_branches() -> None:
    net = pre_norm(
        parallel, one=nn.LayerNorm(D), f=nn.Linear(D, D), g=nn.Linear(D, D), w=Held(D, D)
    )
    converts(center(net, torch.randn(TOKENS)), rms=4)


def test_encoder_and_decoder() -> None:
    """One norm of the encoder feeds the keys and values of every decoder layer."""

    def wiring(m: Any, x: Tensor, y: Tensor) -> Any:
        x = m.stem(x)
        memory = m.last(x + m.a(x))
        y = m.stem2(y)
        for cross in (m.c1, m.c2):
            y = y + cross.out(
                F.scaled_dot_product_attention(
                    cross.q(cross.norm(y)), cross.k(memory), cross.v(memory)
                )
            )
        return m.head(m.norm(y + m.b(y)))

    def cross() -> nn.Module:
        linears = {name: nn.Linear(D, D) for name in ("q", "k", "v", "out")}
        return nn.ModuleDict({**linears, "norm": nn.LayerNorm(D)})

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in cross().items():  # type: ignore[operator]
                self.add_module(name, part)

    net = pre_norm(wiring, stem2=nn.Linear(D, D), last=nn.LayerNorm(D), c1=Cross(), c2=Cross())
    converts(center(net, torch.randn(TOKENS), torch.randn(2, 7, D)), rms=6)


def test_mean_pooled_head() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return m.head(m.norm((x + m.a(x)).mean(1)))

    converts(center(pre_norm(wiring), torch.randn(TOKENS)), rms=2)


def test_norm_of_a_norm() -> None:
    """A core's mean is zero: the norm behind it needs no centring, and the first one converts as well."""
    bare = nn.LayerNorm(D, elementwise_affine=False)
    net = pre_norm(lambda m, x: m.head(m.norm(m.bare(m.stem(x)))), bare=bare)
    converts(center(net, torch.randn(TOKENS)), rms=2)


def test_post_norm_without_gain_and_bias() -> None:
    """The residual behind such a norm is centred already, whoever else reads it."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.bare(m.stem(x))
        x = m.bare(x + m.g(F.gelu(m.f(x))))
        return m.head(m.bare(x + m.k(F.gelu(m.h(x)))))

    linears = {name: nn.Linear(D, D) for name in "fghk"}
    net = pre_norm(wiring, bare=nn.LayerNorm(D, elementwise_affine=False), **linears)
    converts(center(net, torch.randn(TOKENS)), rms=3)


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e3])
def test_any_eps(eps: float) -> None:
    net = pre_norm(lambda m, x: blocks(m, m.stem(x)), norm=nn.LayerNorm(D, eps=eps))
    outcome = converts(center(net, torch.randn(TOKENS)), rms=3)
    assert eps in [node.args[3] for node in outcome.after.nodes if "rms_norm" in str(node.target)]


# -- private tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_norms_of_heads(bias: bool) -> None:
    """Rows of q and k of a fused projection are centred per head, those of v stay."""
    net = pre_norm(lambda m, x: blocks(m, m.stem(x)), a=Attention(qk_norm=True, bias=bias))
    outcome = converts(center(net, torch.randn(TOKENS)), rms=5)
    (weight,) = [
        value for value in outcome.baked.module.state_dict().values() if value.shape == (3 * D, D)
    ]
    heads = weight.reshape(3, 2, D // 2, D).mean(2).abs()
    assert float(heads[:2].max()) < 1e-6
    assert float(heads[2].min()) > 1e-6


def test_norms_of_whole_queries_and_keys() -> None:
    """One mean over all heads (OLMo 2): split, not reshaped, in front of the norm."""

    def attend(m: Any, x: Tensor) -> Any:
        q, k, v = m.qkv(m.inner(x)).split(D, -1)
        q, k = m.q_norm(q), m.k_norm(k)
        return x + m.out(F.scaled_dot_product_attention(q, k, v))

    net = pre_norm(
        lambda m, x: m.head(m.norm(attend(m, m.stem(x)))),
        inner=nn.LayerNorm(D),
        qkv=nn.Linear(D, 3 * D),
        q_norm=nn.LayerNorm(D),
        k_norm=nn.LayerNorm(D),
        out=nn.Linear(D, D),
    )
    converts(center(net, torch.randn(TOKENS)), rms=4)


def test_branch_norms() -> None:
    """Swin-V2: the norm reads a private linear, and its gain and bias are on the stream."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for index in "12":
            y = getattr(m, f"down{index}")(F.gelu(getattr(m, f"up{index}")(x)))
            x = x + getattr(m, f"norm{index}")(y)
        return m.head(m.norm(x))

    parts: dict[str, nn.Module] = {}
    for index in "12":
        parts[f"up{index}"], parts[f"down{index}"] = nn.Linear(D, 8), nn.Linear(8, D)
        parts[f"norm{index}"] = nn.LayerNorm(D)
    outcome = center(pre_norm(wiring, **parts), torch.randn(TOKENS))
    converts(outcome, rms=2, layer=1)  # the raw linears that read the stream hold the last one
    assert [d.site for d in centring(outcome).declined] == ["norm"]


# -- movement ---------------------------------------------------------------------------------------


def windows(m: Any, x: Tensor) -> Any:
    """Swin's windows: roll, pad, cut into windows of tokens, and back."""
    x = m.stem(x).reshape(2, 5, 7, D)
    y = F.pad(m.one(x).roll((-1, -1), (1, 2)), (0, 0, 0, 1, 0, 1))
    y = y.reshape(2, 3, 2, 4, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, D)
    y = m.f(F.gelu(y @ m.w())).reshape(2, 3, 4, 2, 2, D).permute(0, 1, 3, 2, 4, 5)
    x = x + y.reshape(2, 6, 8, D)[:, :5, :7].roll((1, 1), (1, 2))
    return blocks(m, x.reshape(2, 35, D))


def windowed_stream(m: Any, x: Tensor) -> Any:
    """The stream itself is padded and cut into windows."""
    x = F.pad(m.stem(x).reshape(2, 5, 7, D), (0, 0, 0, 1, 0, 1))
    x = x.reshape(2, 3, 2, 4, 2, D).permute(0, 1, 3, 2, 4, 5).reshape(24, 4, D)
    return blocks(m, x)


@pytest.mark.parametrize(("wiring", "rms"), [(windows, 4), (windowed_stream, 3)])
def test_windows(wiring: Callable[..., object], rms: int) -> None:
    net = pre_norm(wiring, one=nn.LayerNorm(D), f=nn.Linear(D, D), w=Held(D, D))
    converts(center(net, torch.randn(2, 35, D), dynamic=None), rms=rms)


def test_split_along_tokens() -> None:
    """CaiT and XCiT: the class token goes its own way and comes back."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = torch.cat([m.token().expand(x.shape[0], -1, -1), m.stem(x)], 1)
        first, rest = x[:, :1], x[:, 1:]
        first = first + m.a(torch.cat([first, rest], 1))[:, :1]
        x = torch.cat([first, rest], 1)
        first, rest = x.split([1, 5], 1)
        x = torch.cat([first + m.b(first), rest], 1)
        return m.head(m.norm(x)[:, 0])

    net = pre_norm(wiring, token=Held(1, 1, D), a=Attention())
    converts(center(net, torch.randn(TOKENS)), rms=3)


def pruned_by_gather(m: Any, x: Tensor) -> Any:
    order = m.score(x).argsort(1)[:, :3]
    x = m.stem(x)
    return blocks(m, (x + m.c(x)).gather(1, order.expand(-1, -1, D)))


def pruned_by_select(m: Any, x: Tensor) -> Any:
    order = m.score(x)[0, :, 0].argsort()[:3]
    x = m.stem(x)
    return blocks(m, (x + m.c(x)).index_select(1, order))


def pruned_by_index(m: Any, x: Tensor) -> Any:
    order = m.score(x)[0, :, 0].argsort()[:3]
    x = m.stem(x)
    return blocks(m, (x + m.c(x))[:, order])


def pruned_by_rows(m: Any, x: Tensor) -> Any:
    order = m.score(x)[..., 0].argmax(1)
    x = m.stem(x)
    x = x + m.c(x)
    return blocks(m, x[torch.arange(x.shape[0]), order])


@pytest.mark.parametrize(
    "wiring", [pruned_by_gather, pruned_by_select, pruned_by_index, pruned_by_rows]
)
def test_tokens_chosen_at_run_time(wiring: Callable[..., object]) -> None:
    net = pre_norm(wiring, score=nn.Linear(D, 1), c=Branch())
    converts(center(net, torch.randn(TOKENS)), rms=4)


def test_as_many_tokens_as_data_decide() -> None:
    """A mask gives a size that no example tells."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = m.stem(x)[x[..., 0] > 0]
        y = y + m.f(F.gelu(m.one(y) @ m.w()))
        return m.head(m.norm(y))

    net = pre_norm(wiring, one=nn.LayerNorm(D), w=Held(D, D), f=nn.Linear(D, D))
    converts(center(net, torch.randn(TOKENS)), rms=2)


def test_features_chosen_at_run_time_are_not_centred_before() -> None:
    """A gather along the tokens whose index differs from feature to feature does not commute with P."""

    def wiring(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x).gather(1, m.score(x).argsort(1)))

    converts(center(pre_norm(wiring, score=nn.Linear(D, D)), torch.randn(TOKENS)), rms=3, ops=1)

    def narrow(m: Any, x: Tensor) -> Any:
        return m.narrow(m.stem(x).gather(1, m.score(x).argsort(1)[..., :4]))

    net = network(
        narrow,
        stem=nn.Linear(D, D),
        score=nn.Linear(D, D),
        narrow=nn.LayerNorm(4, elementwise_affine=False),
    )
    converts(center(net, torch.randn(TOKENS)), rms=0, layer=1)


def test_sliding_windows_of_as_many_tokens_as_features() -> None:
    """`unfold` puts an axis behind the features."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.last(x.unfold(1, D, 1).permute(0, 1, 3, 2))
        return blocks(m, x) + m.head(y).mean((1, 2))[:, None]

    net = pre_norm(wiring, last=nn.LayerNorm(D))
    converts(center(net, torch.randn(2, 8, D)), rms=4)


def test_features_permuted_and_cut() -> None:
    """A fixed permutation keeps the group; a part of the features does not."""

    def permuted(m: Any, x: Tensor) -> Any:
        return blocks(m, m.stem(x)[..., [3, 1, 0, 2, 5, 4]].flip(-1).roll(2, -1))

    converts(center(pre_norm(permuted), torch.randn(TOKENS)), rms=3)

    def part(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return blocks(m, x) + m.small(x[..., :3])

    small = nn.LayerNorm(3, elementwise_affine=False)
    net = pre_norm(part, small=small, head=nn.Linear(D, 3))
    converts(center(net, torch.randn(TOKENS)), rms=3, ops=1, layer=1)


def test_means_of_tokens_and_attention_over_the_raw_stream() -> None:
    """Linear over the tokens: pooling, upsampling, values of attention without weights."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        y = F.interpolate(y.transpose(1, 2), size=5, mode="linear").transpose(1, 2)
        scores = (m.one(x) @ m.one(x).transpose(1, 2)).softmax(-1)
        return blocks(m, y + scores @ x)

    converts(center(pre_norm(wiring, one=nn.LayerNorm(D)), torch.randn(TOKENS)), rms=5)
