"""LayerNorms out, norms of normfold in, and out again as affines: on a small transformer and on odd modules."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.errors import UsageError
from normfold.nn import UN, Affine, GroupScaling, OfflineNorm, PowerNorm, PRepBN
from normfold.train import finalize, replace_norms
from tests.nets import perturb
from tests.nn.norms import tokens


class LayerNorm2d(nn.LayerNorm):
    """As timm's: the features lie along axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class OwnLayerNorm(nn.Module):
    """As in many repositories: no relation to torch's, written out."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(features)) for _ in range(2))
        self.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


class RootLayerNorm(OwnLayerNorm):
    """As T5LayerNorm: called so, but without the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first = LayerNorm2d(4, eps=1e-6)
        self.own = OwnLayerNorm(4)
        self.bare = nn.LayerNorm(4, elementwise_affine=False)
        self.unbiased = nn.LayerNorm(4, bias=False)
        self.again = self.own
        self.wide = nn.LayerNorm((3, 4))
        self.root = RootLayerNorm(4)
        self.unused = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.own(x) + self.bare(x) + self.unbiased(x)
        result: Tensor = self.again(x) + self.root(x)
        return result


REPLACEABLE = ["first", "own", "bare", "unbiased", "unused"]


def transformer() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.1)
    net = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    perturb(net)
    return net


def images() -> list[Tensor]:
    return [torch.randn(4, 3, 6, 7, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def test_what_is_replaced_and_why_the_rest_is_not() -> None:
    net = Odd()
    perturb(net)
    net.own.train()
    net.bare.train()
    old = net.bare
    result = replace_norms(net)
    assert result == REPLACEABLE
    assert result.kept.keys() == {"wide", "root"}
    assert "2 axes" in result.kept["wide"]
    assert "computes no LayerNorm" in result.kept["root"]
    assert net.own is net.again
    assert net.bare is not old
    assert isinstance(net.first, PRepBN)
    assert (net.first.axis, net.first.features, net.first.ln_eps) == (1, 4, 1e-6)
    assert isinstance(net.own, PRepBN)
    assert (net.own.axis, net.own.ln_eps) == (-1, 1e-3)
    assert [m.training for m in (net.first, net.own, net.bare)] == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fresh_prepbn_is_the_layernorm_in_training(dtype: torch.dtype) -> None:
    net, twin = Odd(), Odd()
    perturb(net).to(dtype)
    twin.load_state_dict(net.state_dict())
    twin.to(dtype)
    for model in (net, twin):
        model.train()
    replace_norms(net, "prepbn", eta=0.1)
    x = images()[0].to(dtype)
    tolerance = 1e-12 if dtype is torch.float64 else 0.05
    torch.testing.assert_close(net(x), twin(x), rtol=tolerance, atol=tolerance)
    fixed = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {"bare.ln_weight", "bare.ln_bias", "unbiased.ln_bias"}
    assert all(p.dtype == dtype for p in net.parameters())


def kinds() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("affine", {}),
        ("bn", {}),
        ("repbn", {"eta": 0.5}),
        ("prepbn", {"eta": 0.5}),
        ("un", {"warmup": 10}),
        ("powernorm", {}),
        ("powernorm", {"groups": 2}),
    ]


@pytest.mark.parametrize(("to", "options"), kinds(), ids=str)
def test_the_start_is_the_least_squares_fit_of_each_layernorm(
    to: str, options: dict[str, Any]
) -> None:
    net, teacher = transformer().double(), transformer().double()
    batches = [tokens(3, n, 8, seed=n) for n in (5, 9, 2)]
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, norm in teacher.named_modules():
        if isinstance(norm, nn.LayerNorm):

            def note(_: nn.Module, x: tuple[Tensor], y: Tensor, path: str = path) -> None:
                pairs.setdefault(path, []).append((x[0], y))

            norm.register_forward_hook(note)
    for x in batches:
        teacher(x)
    modes = [module.training for module in net.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = replace_norms(net, to, start=batches, **options)
    assert result == list(pairs)
    assert len(result) == 5
    assert not any(modes)
    assert not any(module.training for module in net.modules())
    for path in result:
        new = net.get_submodule(path)
        assert isinstance(new, OfflineNorm)
        x, y = (torch.cat([pair[i].flatten(0, 1) for pair in pairs[path]]).detach() for i in (0, 1))
        x = new.prepare(x)
        variance = x.var(0, correction=0)
        cov = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
        scale = cov / (variance + 1e-6 * variance.mean())
        torch.testing.assert_close(new.affine()[0], scale, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            new.affine()[1], y.mean(0) - scale * x.mean(0), rtol=1e-9, atol=1e-9
        )
        if "running_mean" in dict(new.named_buffers()):
            torch.testing.assert_close(new.get_buffer("running_mean"), x.mean(0))
            torch.testing.assert_close(new.get_buffer("running_var"), variance)


def test_the_fused_encoder_layer_does_not_bypass_the_new_norms() -> None:
    """Without gradients nn.TransformerEncoderLayer hands its norms' weights to a fused LayerNorm."""
    net = transformer()
    replace_norms(net, "bn", start=[tokens(3, 5, 8).float()])
    x = tokens(3, 5, 8, seed=1).float()
    slow = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), slow)


def test_a_norm_without_inputs_in_start_is_kept() -> None:
    net = Odd().eval()
    result = replace_norms(net, "affine", start=images())
    assert result == [path for path in REPLACEABLE if path != "unused"]
    assert "never called" in result.kept["unused"]
    assert isinstance(net.unused, nn.LayerNorm)
    with pytest.raises(UsageError, match="no batch"):
        replace_norms(net, "affine", start=[])


def test_start_may_call_the_model_otherwise() -> None:
    net = Odd().eval()
    batches = [(x, "label") for x in images()]
    result = replace_norms(net, "bn", norms="first", start=batches, forward=lambda m, b: m(b[0]))
    assert result == ["first"]


def test_patterns_select() -> None:
    net = transformer()
    assert replace_norms(net, "un", norms=["layers.0.*", "*.norm2"], window=3) == [
        "layers.0.norm1",
        "layers.0.norm2",
        "layers.1.norm2",
    ]
    assert replace_norms(net, "bn", norms="norm") == ["norm"]
    new = net.get_submodule("layers.0.norm1")
    assert isinstance(new, UN)
    assert new.window == 3
    odd = Odd()
    assert replace_norms(odd, norms="again") == ["own"]
    assert odd.own is odd.again


def test_mistakes_are_refused_before_anything_changes() -> None:
    net = transformer()
    for arguments, match in (
        ({"to": "prepn"}, "did you mean `prepbn`"),
        ({"to": "nothing like it"}, "one of: affine, bn"),
        ({"norms": "layers.0.norm3"}, "did you mean `layers.0.norm"),
        ({"to": "un", "windw": 3}, "did you mean `window`"),
        ({"to": "affine", "eta": 1.0}, "no option `eta`"),
    ):
        with pytest.raises(UsageError, match=match):
            replace_norms(net, **arguments)
    with pytest.raises(UsageError, match="has no LayerNorm"):
        replace_norms(nn.Linear(4, 4))
    assert sum(isinstance(m, nn.LayerNorm) for m in net.modules()) == 5
    assert replace_norms(nn.LayerNorm(4)).kept == {"": "is the whole model: nothing holds it"}


@pytest.mark.parametrize(("to", "options"), kinds(), ids=str)
def test_finalize_keeps_the_function(to: str, options: dict[str, Any]) -> None:
    net = Odd()
    perturb(net)
    replace_norms(net, to, start=images(), **options)
    perturb(net)
    x = images()[1]
    wanted = net(x)
    assert finalize(net) is net
    torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, OfflineNorm) and not isinstance(m, Affine) for m in net.modules())
    scaled = sum(isinstance(m, GroupScaling) for m in net.modules())
    assert scaled == (4 if "groups" in options else 0)
    assert net.own is net.again
    assert not any(m.training for m in net.modules())


def test_finalize_of_a_norm_alone() -> None:
    norm = PowerNorm(4, axis=1, dtype=torch.float64).eval()
    norm.start(tokens(4), tokens(4, seed=1), tokens(4), tokens(4).square())
    x = tokens(2, 4, 3, 4)
    final = finalize(norm)
    assert isinstance(final, Affine)
    assert torch.equal(final(x), norm(x))
    assert finalize(final) is final
