"""canonicalize: golden, equal, declines, idempotent, no-op."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from tests.nets import Encoder, Norms, PostNorm, Residual, conv, perturb
from tests.passes.declined import REFUSALS
from tests.passes.judge import declines, golden_pass, judge, right, untouched

IMAGE = (2, 4, 5, 6)


class Arithmetic(nn.Module):
    """Every way to write a per-channel constant, and some that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.d = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)
        self.map = nn.Parameter(torch.randn(4, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c - x)
        x = F.gelu(torch.add(x, self.d, alpha=2))
        x = F.gelu(torch.sub(self.d, x, alpha=3))
        x = F.gelu(x / self.c)
        x = F.gelu(self.c / (x.abs() + 2))
        x = F.gelu(x * self.c + 0)
        return F.dropout(x * 1 + self.map, 0.5, training=False).contiguous()


class HandWritten(nn.Module):
    """A channels-first layer norm and an RMS norm on the last axis, both spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        x = F.gelu(self.gain[:, None, None] * x + self.bias[:, None, None])
        return self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


# -- golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "build", "shape"),
    [
        ("norms", Norms, IMAGE),
        ("arithmetic", Arithmetic, IMAGE),
        ("encoder", Encoder, (2, 5, 8)),
        ("handwritten", HandWritten, IMAGE),
    ],
)
def test_golden(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    golden_pass(f"canonicalize/{name}", capture(build().eval(), (torch.randn(shape),)))


# -- equal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Norms, IMAGE),
        (Arithmetic, IMAGE),
        (Encoder, (2, 5, 8)),
        (PostNorm, (2, 5, 8)),
        (Residual, IMAGE),
        (HandWritten, IMAGE),
    ],
)
def test_equal(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    outcome = right(judge(capture(perturb(build()), (torch.randn(shape),)), "canonicalize"))
    assert outcome.reports[0].modified
    assert not outcome.declined


@settings(max_examples=6)
@given(
    rank=st.integers(0, 3),
    eps=st.sampled_from([1e-5, 0.1]),
    affine=st.booleans(),
    channels=st.integers(2, 4),
)
def test_equal_for_any_rank(rank: int, eps: float, affine: bool, channels: int) -> None:
    kind = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][rank]
    norm = perturb(kind(channels, eps=eps, affine=affine))
    x = torch.randn(2, channels, *(3, 4, 5)[:rank])
    outcome = right(judge(capture(norm, (x,)), "canonicalize"))
    assert outcome.ops() == ["normfold::channel_affine"]


def test_norms_keep_no_affine() -> None:
    """Behind it every norm is a core, and every number per channel is a channel affine."""
    after, reports = run_pipeline(
        capture(perturb(Norms()), (torch.randn(IMAGE),)), parse("canonicalize")
    )
    names = [op_name(node) for node in after.nodes]
    assert names.count("normfold::channel_affine") == 7  # not `bare`
    assert not any("batch_norm" in name for name in names)
    for node in after.nodes:
        if op_name(node) in ("layer_norm", "group_norm", "instance_norm", "rms_norm"):
            used = [
                str(source.target) for source in node.all_input_nodes if source.op == "get_attr"
            ]
            assert used == []
    kinds = {path: site.kind for path, site in after.sites.items()}
    assert kinds == {
        "batch": "batch-norm",
        "plain": "batch-norm",
        "layer": "layer-norm",
        "rms": "rms-norm",
        "group": "group-norm",
        "instance": "instance-norm",
        "bare": "layer-norm",
        "biasless": "layer-norm",
    }
    assert all(site.line.split(":")[0].endswith(".py") for site in after.sites.values())
    assert {a.site for a in reports[0].applied if a.kind} == set(kinds)


@pytest.mark.parametrize("dynamic", [None, "batch"])
def test_norms_of_a_decomposed_program(dynamic: str | None) -> None:
    """What `native_layer_norm` and its like normalise is the same site as before."""
    whole = capture(perturb(Norms()), (torch.randn(IMAGE),), dynamic=dynamic)
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}} if dynamic else None
    program = torch.export.export(
        perturb(Norms()), (torch.randn(IMAGE),), dynamic_shapes=shapes
    ).run_decompositions()
    graph = capture(program, (torch.randn(IMAGE),))
    native = [op_name(node) for node in graph.nodes if "native" in op_name(node)]
    assert {"native_layer_norm", "native_group_norm"} <= set(native)
    outcome = right(judge(graph, "canonicalize"))
    assert not [op for op in outcome.ops() if op.startswith("native")]
    expected = run_pipeline(whole, parse("canonicalize"))[0].sites
    sites = outcome.after.sites
    assert {site.kind for site in sites.values()} >= {"layer-norm", "group-norm", "rms-norm"}
    # an instance norm becomes a batch norm that computes its statistics, which is declined
    assert set(expected) - {"instance"} <= set(sites), "the paths of the modules"
    assert outcome.codes == {"NF101"}


def test_a_norm_whose_statistics_are_read_stays_native() -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, mean, _ = torch.native_layer_norm(x, [6], None, None, 1e-5)
            return F.gelu(y), mean

    outcome = right(judge(capture(Read().eval(), (torch.randn(IMAGE),)), "canonicalize"))
    assert outcome.ops()[0] == "native_layer_norm"


def test_constants_that_are_not_per_channel_stay() -> None:
    after, _ = run_pipeline(
        capture(Arithmetic().eval(), (torch.randn(IMAGE),)), parse("canonicalize")
    )
    names = [op_name(node) for node in after.nodes]
    assert names.count("normfold::channel_affine") == 5
    assert [n for n in names if n in ("dropout", "contiguous", "clone")] == []
    assert names.count("div") == 1, "a number per channel over x is not affine"


def test_half_precision_activations_keep_their_dtype() -> None:
    net = perturb(nn.Sequential(conv().half(), nn.BatchNorm2d(4)))
    outcome = right(judge(capture(net, (torch.randn(IMAGE).half(),)), "canonicalize"))
    assert outcome.baked(*outcome.before.args).dtype == torch.float16


# -- declines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["NF101", "NF116"])
def test_declines(code: str) -> None:
    module, x = REFUSALS[code].build()
    outcome = declines(judge(capture(module, (x,)), "canonicalize"), code)
    assert outcome.reports[0].declined[0].site == "norm"


# -- idempotent, no-op ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Norms, IMAGE), (Arithmetic, IMAGE), (Encoder, (2, 5, 8)), (HandWritten, IMAGE)],
)
def test_idempotent(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    untouched(capture(perturb(build()), (torch.randn(shape),)), "canonicalize,canonicalize")


def test_a_second_run_behind_restore_splits_again() -> None:
    graph = capture(perturb(Norms()), (torch.randn(IMAGE),))
    outcome = right(judge(graph, "canonicalize,restore,canonicalize"))
    assert outcome.ops().count("normfold::channel_affine") == 7


def test_bare_norms_are_sites_but_no_edits() -> None:
    graph = capture(nn.LayerNorm(6, elementwise_affine=False).eval(), (torch.randn(IMAGE),))
    after, reports = run_pipeline(graph, parse("canonicalize"))
    assert [site.kind for site in after.sites.values()] == ["layer-norm"]
    assert not reports[0].modified


def test_no_op() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)).eval()
    untouched(capture(net, (torch.randn(IMAGE),)), "canonicalize")
