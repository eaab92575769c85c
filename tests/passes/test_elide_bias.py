"""elide-bias: biases that others take or that nothing sees, and those that something does see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.passes.elide_bias import ElideBias
from normfold.rewrite import parse, run_pipeline
from normfold.testing import no_op
from tests.nets import Compose, conv, perturb
from tests.passes.judge import Outcome, golden_pass, judge, right

TEXT = "canonicalize,elide-bias"
Attend = Callable[[Tensor, Tensor, Tensor], Any]


class Attention(nn.Module):
    """Heads of attention between linear layers, in a given way."""

    def __init__(self, attend: Attend, heads: int = 2, groups: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 8, bias=bias)
        self.k, self.v = nn.Linear(8, 4 * groups), nn.Linear(8, 4 * groups)
        self.attend, self.heads, self.groups = attend, heads, groups

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor, count: int) -> Tensor:
            z: Tensor = y.unflatten(-1, (count, 4)).transpose(1, 2)
            return z

        q, k, v = (
            split(self.q(x), self.heads),
            *(split(m(x), self.groups) for m in (self.k, self.v)),
        )
        y: Tensor = self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return y


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((5, 5), -torch.inf).triu(1).to(q.dtype)
    return ((q @ k.transpose(-1, -2)) / 2 + mask).softmax(-1) @ v


def _rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angle = torch.arange(5, dtype=q.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=q.dtype)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    q, k = (y * cos + torch.cat([-y[..., 2:], y[..., :2]], -1) * sin for y in (q, k))
    return F.scaled_dot_product_attention(q, k, v)


def _with_a_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (torch.cat([y, torch.zeros_like(y[:, :, :1])], 2) for y in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def _sdpa(**options: Any) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


TAKEN: dict[str, tuple[Attend, set[str]]] = {
    "sdpa": (_sdpa(), {"k", "v"}),
    "causal": (_sdpa(is_causal=True), {"k", "v"}),
    "masked": (_sdpa(attn_mask=torch.randn(5, 5)), {"k"}),
    "by hand": (_plain, {"k", "v"}),
    "over queries": (lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-2) @ v, set()),
    "no softmax": (lambda q, k, v: (q @ k.transpose(-1, -2)).relu() @ v, set()),
    "soft cap": (lambda q, k, v: (q @ k.transpose(-1, -2)).tanh().softmax(-1) @ v, {"v"}),
    "rotary": (_rotated, {"v"}),
    "norm of keys": (lambda q, k, v: _sdpa()(q, F.layer_norm(k, (4,)), v), {"v"}),
    "a key more": (_with_a_key, set()),
    "keys are values": (lambda q, k, _: _sdpa()(q, k, k), set()),
}


def _elided(outcome: Outcome) -> set[str]:
    (report,) = (item for item in outcome.reports if item.name == "elide-bias")
    return {item.site for item in report.applied}


@pytest.mark.parametrize("name", TAKEN)
def test_attention(name: str) -> None:
    attend, taken = TAKEN[name]
    graph = capture(perturb(Attention(attend)), (torch.randn(2, 5, 8),))
    outcome = right(judge(graph, TEXT))
    # of keys that are values, the projection that nothing reads has a bias to lose as well
    assert _elided(outcome) == taken
    assert certify(graph, outcome.after).ok


def test_grouped_queries() -> None:
    attend = _sdpa(enable_gqa=True)
    graph = capture(perturb(Attention(attend, heads=2, groups=1)), (torch.randn(2, 5, 8),))
    assert "k" in _elided(right(judge(graph, TEXT)))


def test_no_op_gets_a_bias_that_had_none() -> None:
    graph = capture(perturb(Attention(_sdpa(), bias=False)), (torch.randn(2, 5, 8),))
    outcome = right(judge(graph, TEXT))
    assert _elided(outcome) == {"k"}
    assert [item.code for item in outcome.declined if item.site == "v"] == ["NF122"]


NORMS: dict[str, tuple[nn.Module, bool]] = {
    "instance": (nn.InstanceNorm2d(4, affine=True), True),
    "instance, tracked": (nn.InstanceNorm2d(4, track_running_stats=True), False),
    "single channels": (nn.GroupNorm(4, 4), True),
    "groups": (nn.GroupNorm(2, 4), False),
    "one group": (nn.GroupNorm(1, 4), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    norm, taken = NORMS[name]
    graph = capture(perturb(nn.Sequential(conv(), norm)), (torch.randn(2, 4, 5, 6),))
    outcome = right(judge(graph, TEXT))
    assert _elided(outcome) == ({"0"} if taken else set())
    assert certify(graph, outcome.after).ok


def test_linear_on_linear() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.GELU(), nn.Linear(3, 3))
    graph = capture(perturb(net), (torch.randn(2, 4),))
    outcome = right(judge(graph, TEXT))
    assert _elided(outcome) == {"0"}
    assert not outcome.declined


def test_queries_keys_and_values_of_one_layer() -> None:
    def attend(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
        return y

    net = Compose(attend, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8))
    outcome = right(judge(capture(perturb(net), (torch.randn(2, 5, 8),)), TEXT))
    assert not _elided(outcome)
    assert outcome.codes == {"NF105"}


def test_what_does_not_concern_it() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    no_op(ElideBias(), net, (torch.randn(2, 4),))


def test_the_encoder_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    graph = capture(perturb(layer), (torch.randn(2, 5, 8),))
    after, _ = run_pipeline(graph, parse(TEXT))
    assert certify(graph, after).ok


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(perturb(Attention(_sdpa())), (torch.randn(2, 5, 8),))
    golden_pass("elide-bias/attention", graph, "canonicalize")
