"""Hand-written norms are recognised by what they compute, however spelled; look-alikes are left alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.sites import norm_sites
from tests import torchvision_shim
from tests.nets import Compose, conv, perturb
from tests.passes.judge import Outcome, fold, folded, judge, right, untouched

torchvision_shim.install()

EPS, EXACT = 1e-3, 1e-12  # the first so large that forgetting it, or misplacing it, is seen
IMAGE = (3, 4, 5, 6)
Moment = Callable[[Tensor, Any], Tensor]
Root = Callable[[Tensor, Tensor], Tensor]
STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "sqrt", "rsqrt", "pow", "square"}


class Spelled(nn.Module):
    """Every function of one input, each result an output of its own."""

    def __init__(self, *spellings: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spellings = spellings

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(spelling(x) for spelling in self.spellings)


def census(graph: Graph) -> Counter[str]:
    """How often every op on activations is there."""
    nodes = [node for node in graph.nodes if node.op == "call_function" and not is_static(node)]
    return Counter(op_name(node) for node in nodes)


def recognised(module: nn.Module, x: Tensor, dynamic: Any = "batch", **norms: int) -> Outcome:
    """Canonicalise, and assert that these norms are all that is left of the statistics, to 1e-12."""
    outcome = right(judge(capture(perturb(module), (x,), dynamic=dynamic), "canonicalize"))
    counted = census(outcome.after)
    assert {name: counted[name] for name in ("layer_norm", "rms_norm") if counted[name]} == norms
    assert not STATISTICS & counted.keys(), counted
    assert max(outcome.algebra) <= EXACT
    untouched(outcome.after, "canonicalize")
    return outcome


# -- spellings --------------------------------------------------------------------------------------

MEANS: dict[str, Moment] = {
    "mean": lambda x, dims: x.mean(dims, keepdim=True),
    "sum / n": lambda x, dims: x.sum(dims, keepdim=True) / (x[0].numel() // _others(x, dims)),
    "sum * 1/n": lambda x, dims: x.sum(dims, keepdim=True) * (_others(x, dims) / x[0].numel()),
    "var_mean": lambda x, dims: torch.var_mean(x, dims, keepdim=True)[1],
    "detached copy": lambda x, dims: x.clone().mean(dims, keepdim=True).detach() * 1,
}
VARIANCES: dict[str, Moment] = {
    "pow": lambda x, dims: (x - x.mean(dims, keepdim=True)).pow(2).mean(dims, keepdim=True),
    "product": lambda x, dims: _product(x - x.mean(dims, keepdim=True)).mean(dims, keepdim=True),
    "negative": lambda x, dims: (x.mean(dims, keepdim=True) - x).square().mean(dims, keepdim=True),
    "unbiased": lambda x, dims: x.var(dims, unbiased=False, keepdim=True),
    "correction": lambda x, dims: x.var(dims, correction=0, keepdim=True),
    "var_mean": lambda x, dims: torch.var_mean(x, dims, correction=0, keepdim=True)[0],
    "std": lambda x, dims: x.std(dims, correction=0, keepdim=True) ** 2,
    "of centred": lambda x, dims: (x - x.mean(dims, keepdim=True)).var(
        dims, correction=0, keepdim=True
    ),
    "difference": lambda x, dims: (
        (x * x).mean(dims, keepdim=True) - x.mean(dims, keepdim=True) ** 2
    ),
    "clamped": lambda x, dims: ((x**2).mean(dims, True) - x.mean(dims, True).square()).clamp(0),
}
SQUARES: dict[str, Moment] = {
    "pow": lambda x, dims: x.pow(2).mean(dims, keepdim=True),
    "product": lambda x, dims: (x * x).mean(dims, keepdim=True),
    "square": lambda x, dims: x.square().mean(dims, keepdim=True),
    "operator": lambda x, dims: (
        (x**2.0).sum(dims, keepdim=True) / (x[0].numel() // _others(x, dims))
    ),
}
ROOTS: dict[str, Root] = {
    "/ sqrt": lambda x, v: x / torch.sqrt(v + EPS),
    "* rsqrt": lambda x, v: x * torch.rsqrt(v + EPS),
    "rsqrt *": lambda x, v: torch.rsqrt(EPS + v) * x,
    "/ pow": lambda x, v: x / (v + EPS) ** 0.5,
    "* pow": lambda x, v: x * (v + EPS).pow(-0.5),
    "* 1 / sqrt": lambda x, v: x * (1 / (v + EPS).sqrt()),
    "* reciprocal": lambda x, v: x * torch.reciprocal(torch.add(v, EPS / 2, alpha=2).sqrt()),
}
AXES = {"last": -1, "channels first": 1, "last two": (-2, -1), "all": (1, 2, 3)}


def _in_turn(turn: int, *tables: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """As many rows as the longest table has, each with the next entry of every table; ``turn`` shifts them."""
    for row in range(max(map(len, tables))):
        yield tuple(
            list(table.values())[(row + turn * column) % len(table)]
            for column, table in enumerate(tables)
        )


def _product(x: Tensor) -> Tensor:
    return x * x


def _others(x: Tensor, dims: Any) -> int:
    """Elements of one sample per group that is averaged."""
    averaged = [dims] if isinstance(dims, int) else list(dims)
    return x[0].numel() // torch.Size(x.shape[dim] for dim in averaged).numel()


@pytest.mark.parametrize("axes", AXES)
def test_layer_norm(axes: str) -> None:
    """Every variance, with every mean and every root in turn."""
    dims, turn = AXES[axes], list(AXES).index(axes)

    def spell(variance: Moment, mean: Moment, root: Root) -> Callable[[Tensor], Tensor]:
        return lambda x: root(x - mean(x, dims), variance(x, dims))

    every = [spell(*three) for three in _in_turn(turn, VARIANCES, MEANS, ROOTS)]
    outcome = recognised(Spelled(*every), torch.randn(IMAGE) + 0.5, layer_norm=len(every))
    assert census(outcome.after)["permute"] == (2 * len(every) if axes == "channels first" else 0)


@pytest.mark.parametrize("axes", AXES)
def test_rms_norm(axes: str) -> None:
    dims, turn = AXES[axes], list(AXES).index(axes)

    def spell(square: Moment, root: Root) -> Callable[[Tensor], Tensor]:
        return lambda x: root(x, square(x, dims))

    every = [spell(*two) for two in _in_turn(turn, SQUARES, ROOTS)]
    recognised(Spelled(*every), torch.randn(IMAGE) + 0.5, rms_norm=len(every))


def test_a_dropped_axis_that_comes_back() -> None:
    """Without keepdim the axis must be put back where it was."""

    def layer(x: Tensor) -> Tensor:
        centred = x - x.mean(-1)[..., None]
        return centred * torch.rsqrt(x.var(-1, correction=0).unsqueeze(-1) + EPS)

    def rms(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(2) + EPS).sqrt().unsqueeze(2)

    recognised(Spelled(layer, rms), torch.randn(2, 5, 5, 5), layer_norm=1, rms_norm=1)


def test_rank_one() -> None:
    net = Spelled(lambda x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS))
    recognised(net, torch.randn(7), dynamic=None, rms_norm=1)


def test_a_norm_of_a_norm() -> None:
    def layer(x: Tensor) -> Tensor:
        return (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()

    def rms(x: Tensor) -> Tensor:
        return torch.rsqrt(x.pow(2).mean(-1, True) + EPS) * x

    net = Spelled(lambda x: layer(rms(layer(x) * 3)), lambda x: rms(rms(x.transpose(1, 2))))
    recognised(net, torch.randn(2, 5, 6), layer_norm=2, rms_norm=3)


def test_rms_norm_of_what_was_centred_over_other_axes() -> None:
    def net(x: Tensor) -> Tensor:
        x = x - x.mean((1, 2), keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)

    after = judge(capture(Spelled(net), (torch.randn(2, 5, 6),)), "canonicalize")
    assert census(right(after).after) == {"mean": 1, "sub": 1, "rms_norm": 1}


def test_statistics_with_other_readers_stay() -> None:
    def net(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return m.head((x - mean) / torch.sqrt(variance + EPS)), mean

    graph = capture(perturb(Compose(net, head=nn.Linear(6, 3))), (torch.randn(2, 5, 6),))
    outcome = right(judge(graph, "canonicalize"))
    assert census(outcome.after) == {"mean": 1, "layer_norm": 1, "linear": 1}
    assert max(outcome.algebra) <= EXACT


def test_any_batch() -> None:
    net = Spelled(lambda x: (x - x.mean(1, True)) / (x.var(1, False, keepdim=True) + EPS).sqrt())
    outcome = recognised(net, torch.randn(IMAGE), layer_norm=1)
    x = torch.randn(7, *IMAGE[1:])
    torch.testing.assert_close(outcome.after(x), net(x))


# -- dtypes -----------------------------------------------------------------------------------------


def _llama(m: Any, x: Tensor) -> Any:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return m.scale.weight[:, 0] * wide.to(x.dtype)


def _promoted(m: Any, x: Tensor) -> Any:
    """T5: the product itself widens."""
    result = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    return m.scale.weight[:, 0] * result.to(x.dtype)


def _deberta(m: Any, x: Tensor) -> Any:
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    result = (wide - mean) / torch.sqrt((wide - mean).pow(2).mean(-1, keepdim=True) + EPS)
    return m.scale.weight[:, 0] * result.to(x.dtype) + m.scale.bias


def _mean_in_float(m: Any, x: Tensor) -> Any:
    mean = x.mean(-1, keepdim=True, dtype=torch.float32)
    variance = x.float().var(-1, correction=0, keepdim=True)
    return m.scale.weight[:, 0] * ((x - mean) * torch.rsqrt(variance + EPS)).type_as(x)


def _narrow(m: Any, x: Tensor) -> Any:
    result = (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, False, keepdim=True) + EPS)
    return m.scale.weight[:, 0] * result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        (_llama, "rms_norm"),
        (_promoted, "rms_norm"),
        (_deberta, "layer_norm"),
        (_mean_in_float, "layer_norm"),
        (_narrow, "layer_norm"),
    ],
)
def test_dtypes(spelling: Callable[..., Any], kind: str, dtype: torch.dtype) -> None:
    """The norm is computed in the dtype that its author chose, between the casts that were there."""
    net = Compose(spelling, scale=nn.Linear(1, 6)).to(dtype)
    outcome = recognised(net, torch.randn(2, 5, 6).to(dtype), **{kind: 1})
    (core,) = [node for node in outcome.after.nodes if op_name(node) == kind]
    wide = torch.promote_types(dtype, torch.float32) if spelling is not _narrow else dtype
    assert core.meta["val"].dtype == wide
    kinds = [node.meta["val"].dtype for node in outcome.after.nodes if "val" in node.meta]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) == (0 if wide == dtype else 2)
    assert outcome.after(*outcome.before.args).dtype == dtype
    assert census(outcome.after)["normfold::channel_affine"] == (2 if spelling is _deberta else 1)


# -- gain and bias ----------------------------------------------------------------------------------


def _centred(x: Tensor, dim: int) -> Tensor:
    variance, mean = torch.var_mean(x, dim, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("shifted", [False, True])
def test_gain_and_bias_become_channel_affines(shape: tuple[int, ...], shifted: bool) -> None:
    dim = 1 if len(shape) > 1 else -1

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.bias = (
                nn.Parameter(torch.randn(shape)),
                nn.Parameter(torch.randn(shape)),
            )

        def forward(self, x: Tensor) -> Tensor:
            gain = 1.0 + self.gain if shifted else self.gain
            return gain * _centred(x, dim) + self.bias

    outcome = recognised(Norm(), torch.randn(2, 4, 5, 4), layer_norm=1)
    affines = [node for node in outcome.after.nodes if op_name(node) == "normfold::channel_affine"]
    assert [node.args[3] for node in affines] == [dim % 4] * 2


def test_the_affine_of_a_channels_first_norm_folds_into_the_next_convolution() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight[:, None, None] * _centred(x, 1) + self.bias[:, None, None]

    net = nn.Sequential(conv(), Norm(), nn.Conv2d(4, 8, 1))
    outcome = folded(fold(perturb(net), torch.randn(2, 4, 5, 6)))
    assert outcome.ops() == ["conv2d", "permute", "layer_norm", "permute", "conv2d"]


# -- sites ------------------------------------------------------------------------------------------


class ChannelsFirst(nn.Module):
    """As in ConvNeXt, Detectron2 and SAM."""

    def __init__(self, channels: int = 4, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def test_sites_name_the_users_module_and_line() -> None:
    net = nn.Sequential(conv(), ChannelsFirst(), nn.GroupNorm(1, 4), nn.RMSNorm(6))
    outcome = right(judge(capture(perturb(net), (torch.randn(2, 4, 5, 6),)), "canonicalize"))
    site = outcome.after.sites["1"]
    assert (site.kind, site.module_type) == ("layer-norm", "ChannelsFirst")
    assert site.line.endswith("x = (x - u) / torch.sqrt(s + self.eps)")
    assert site.line.split(":")[0].endswith("test_handwritten.py")
    carried = {s.path: s.kind for n in outcome.after.nodes for s in norm_sites(n)}
    assert carried == {"1": "layer-norm", "2": "group-norm", "3": "rms-norm"}
    assert "1" in {applied.site for applied in outcome.reports[0].applied}
    assert "1: written by hand: layer-norm over axes (1,)" in outcome.reports[0].edits


# -- classes of libraries ---------------------------------------------------------------------------


def _library() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]]:
    from timm.layers import fast_norm, norm
    from transformers.models.deberta.modeling_deberta import DebertaLayerNorm
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    def timm(function: Callable[..., Tensor], size: int, *extra: Any) -> Callable[[], nn.Module]:
        return lambda: Compose(
            lambda m, x: function(x, *extra, m.norm.weight), norm=nn.RMSNorm(size)
        )

    def convolutional(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
        return lambda: Compose(
            lambda m, x: function(x, m.norm.weight, m.norm.bias, 1e-6), norm=nn.LayerNorm(4)
        )

    return {
        "convnext": (ChannelsFirst, (2, 4, 5, 6), "layer_norm"),
        "timm var_mean": (convolutional(norm._layer_norm_cf), (2, 4, 5, 6), "layer_norm"),
        "timm squares": (convolutional(norm._layer_norm_cf_sqm), (2, 4, 5, 6), "layer_norm"),
        "timm rms": (timm(fast_norm.rms_norm, 6, [6]), (2, 5, 6), "rms_norm"),
        "timm rms 2d": (timm(fast_norm.rms_norm2d, 4, [4]), (2, 4, 5, 6), "rms_norm"),
        "llama": (lambda: LlamaRMSNorm(6), (2, 5, 6), "rms_norm"),
        "t5": (lambda: T5LayerNorm(6), (2, 5, 6), "rms_norm"),
        "gemma": (lambda: GemmaRMSNorm(6), (2, 5, 6), "rms_norm"),
        "deberta": (lambda: DebertaLayerNorm(6), (2, 5, 6), "layer_norm"),
    }


LIBRARY = _library()


@pytest.mark.parametrize("name", LIBRARY)
def test_classes_of_libraries(name: str) -> None:
    build, shape, kind = LIBRARY[name]
    outcome = recognised(build(), torch.randn(shape), **{kind: 1})
    assert census(outcome.after)["normfold::channel_affine"] == (1 if kind == "rms_norm" else 2)


# -- group norm -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 1, 1)])
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_of_channels_alone(shape: tuple[int, ...], affine: bool) -> None:
    net = nn.Sequential(nn.GroupNorm(1, 4, eps=EPS, affine=affine))
    outcome = recognised(net, torch.randn(shape), layer_norm=1)
    assert {path: site.kind for path, site in outcome.after.sites.items()} == {"0": "layer-norm"}
    folding = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(1, 4), nn.Linear(4, 3))
    folded(fold(perturb(folding), torch.randn(3, 5)))


@pytest.mark.parametrize(("groups", "shape"), [(1, (2, 4, 5)), (1, (2, 4, 1, 2)), (2, (2, 4))])
def test_other_group_norms_stay(groups: int, shape: tuple[int, ...]) -> None:
    graph = capture(perturb(nn.Sequential(nn.GroupNorm(groups, 4))), (torch.randn(shape),))
    outcome = right(judge(graph, "canonicalize"))
    assert census(outcome.after) == {"group_norm": 1, "normfold::channel_affine": 1}
    assert outcome.after.sites["0"].kind == "group-norm"
