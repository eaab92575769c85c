"""restore: golden, equal, idempotent, no-op. It declines nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, PostNorm, conv, perturb
from tests.passes.judge import golden_pass, judge, right, untouched

IMAGE = (2, 4, 5, 6)


class Left(nn.Module):
    """Affines that nothing can absorb, of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.layer, self.rms = nn.LayerNorm(6), nn.RMSNorm(6)
        self.gain = nn.LayerNorm(6, bias=False)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.children():
            x = F.gelu(norm(x))
        return F.gelu(x * self.scale)


class ReadTwice(nn.Module):
    """A norm without affine whose result is scaled for one reader only: the norm cannot take it back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return F.gelu(x * self.scale) + F.gelu(x)


# -- golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "build"), [("left", Left), ("read-twice", ReadTwice)])
def test_golden(name: str, build: Callable[[], nn.Module]) -> None:
    graph = capture(build().eval(), (torch.randn(IMAGE),))
    golden_pass(f"restore/{name}", graph, "canonicalize,fold-affine")


# -- equal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", ["true", "false"])
@pytest.mark.parametrize("build", [Left, ReadTwice])
def test_equal(build: Callable[[], nn.Module], native: str) -> None:
    graph = capture(perturb(build()), (torch.randn(IMAGE),))
    outcome = right(judge(graph, f"canonicalize,restore{{native={native}}}"))
    assert "normfold::channel_affine" not in outcome.ops()
    assert outcome.ops().count("batch_norm") == (build is Left and native == "true")


def test_affines_go_back_into_their_norms() -> None:
    after, reports = run_pipeline(
        capture(perturb(Left()), (torch.randn(IMAGE),)), parse("canonicalize,restore")
    )
    details = {applied.site: applied.detail for applied in reports[1].applied}
    assert details.pop("batch") == "batch_norm"
    assert details.pop("mul") == "multiply and add" if "mul" in details else True
    assert {details[name] for name in ("group", "instance", "layer", "rms", "gain")} == {
        "back into its norm"
    }
    assert sum(op_name(node) in ("add", "sub") for node in after.nodes if not is_static(node)) == 0


def test_post_norm_graph_is_the_original_again() -> None:
    graph = capture(perturb(PostNorm()), (torch.randn(2, 5, 8),))
    outcome = right(judge(graph, "canonicalize,fold-affine,restore"))
    names = [op_name(node) for node in graph.nodes if node.op == "call_function"]
    assert outcome.ops() == names


def test_half_precision() -> None:
    net = nn.Sequential(nn.GELU(), nn.BatchNorm2d(4), nn.GELU())
    graph = capture(perturb(net).half(), (torch.randn(IMAGE).half(),))
    for native in ("true", "false"):
        outcome = right(judge(graph, f"canonicalize,restore{{native={native}}}"))
        assert outcome.baked(*graph.args).dtype == torch.float16


def test_arithmetic_broadcasts_along_the_right_axis() -> None:
    """C == H == W: only the shape of the constant says which axis it is for."""
    net = perturb(nn.Sequential(nn.GELU(), nn.BatchNorm2d(4), nn.GELU()))
    graph = capture(net, (torch.randn(2, 4, 4, 4),))
    outcome = right(judge(graph, "canonicalize,restore{native=false}"))
    constants = [
        shape_of(source)
        for node in outcome.baked.nodes
        if op_name(node) in ("mul", "add")
        for source in node.all_input_nodes
        if source.op == "get_attr"
    ]
    assert constants == [(4, 1, 1), (4, 1, 1)]


def test_a_norm_over_several_axes_takes_no_vector_back() -> None:
    """Its weight would have to run over all of them."""
    net = Compose(
        lambda m, x: m.norm(x) * m.scale.weight[:, 0],
        norm=nn.LayerNorm((5, 6), elementwise_affine=False),
        scale=nn.Linear(1, 6),
    )
    outcome = right(judge(capture(perturb(net), (torch.randn(IMAGE),)), "canonicalize,restore"))
    assert outcome.ops() == ["layer_norm", "mul"]


# -- idempotent, no-op ------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Left, ReadTwice])
def test_idempotent(build: Callable[[], nn.Module]) -> None:
    graph = capture(perturb(build()), (torch.randn(IMAGE),))
    untouched(graph, "canonicalize,restore,restore")


def test_no_op() -> None:
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.LayerNorm(6)))
    untouched(capture(net, (torch.randn(IMAGE),)), "restore")


class GainAndBias(nn.Module):
    """An RMS norm with a gain and a bias behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.bias = nn.RMSNorm(6), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(x) + self.bias)


def test_an_rms_norm_takes_its_gain_back_and_leaves_the_bias() -> None:
    graph = capture(perturb(GainAndBias()), (torch.randn(2, 5, 6),))
    restored, _ = run_pipeline(graph, parse("canonicalize,restore"))
    ops = [op_name(node) for node in restored.nodes]
    assert ops.count("mul") == 0
    assert ops.count("add") == 1
    right(judge(graph, "canonicalize,restore,bake"))
