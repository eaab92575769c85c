"""The certificate: exact rewrites are identities in prime fields, and faults are none, however small."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.judge.certificate import certify
from normfold.report.certificate import Certificate
from normfold.rewrite import Rewriter, parse, run_pipeline
from tests.judge.mutants import mutants
from tests.nets import Encoder, Norms, PostNorm, RepBlock, Residual, perturb
from tests.passes import compressed
from tests.passes.centred import Branch, network

FOLD = "canonicalize,fold-affine,restore"
SPLIT = "canonicalize,fold-affine{split-norms=true}"
CENTRED = f"{SPLIT},center-stream,restore"
ENTRIES = "fold-input{mean=0.485|0.456|0.406 std=0.229|0.224|0.225}"


def images() -> nn.Module:
    """Convolutions, batch norms with gains of both signs, pools of all kinds, a depthwise one."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def windows() -> nn.Module:
    return compressed.pre_norm(compressed.windows, mix=nn.Linear(6, 6), last=nn.LayerNorm(6))


def blocks(name: str) -> Callable[[], nn.Module]:
    wiring, modules, _, _ = compressed.NETS[name]
    return lambda: compressed.pre_norm(wiring, **modules)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "images": (images, (2, 3, 17, 13), FOLD),
    "images-input": (images, (2, 3, 17, 13), f"canonicalize,{ENTRIES},fold-affine,restore"),
    "images-equalized": (images, (2, 3, 17, 13), "canonicalize,fold-affine,equalize,restore"),
    "residual": (Residual, (2, 4, 5, 6), FOLD),
    "repvgg": (RepBlock, (2, 4, 5, 6), FOLD),
    "norms": (Norms, (2, 4, 6, 6), CENTRED),
    "encoder": (Encoder, (2, 5, 8), CENTRED),
    "post-norm": (PostNorm, (2, 5, 8), CENTRED),
    "windows": (windows, (2, 4, 6), CENTRED),
    "attention": (blocks("attention"), (2, 5, 6), CENTRED),
    "compressed": (
        blocks("patches"),
        (2, 3, 4, 4),
        f"{SPLIT},center-stream,compress-stream,restore",
    ),
    "drop-last": (
        blocks("parallel"),
        (2, 5, 6),
        f"{SPLIT},center-stream,compress-stream{{basis=drop-last}},restore",
    ),
    "rotated": (blocks("attention"), (2, 5, 6), f"{SPLIT},center-stream,rotate-stream,restore"),
    "experts": (blocks("experts"), (2, 5, 6), f"{SPLIT},center-stream,compress-stream,restore"),
}


def rewritten(name: str, seed: int = 0) -> tuple[Graph, Graph]:
    torch.manual_seed(seed)
    build, shape, text = NETS[name]
    graph = capture(perturb(build(), seed), (torch.randn(shape),))
    return graph, run_pipeline(graph, parse(text))[0]


@pytest.mark.parametrize("name", NETS)
def test_exact_rewrites_are_identities(name: str) -> None:
    graph, result = rewritten(name)
    found = certify(graph, result)
    assert found.state == "certified", found
    assert found
    assert len(found.primes) == 3
    assert set(found.covered) == set(result.sites)
    assert not found.left
    assert not found.uncovered
    assert all("1x" in size or "2x" in size for size in found.sizes.split() if size != "and")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_no_false_alarm(name: str) -> None:
    graph, result = rewritten(name, 1)
    for seed in range(20):
        found = certify(graph, result, seed=seed)
        assert found.state == "certified", (seed, found)


def test_seeds() -> None:
    graph, result = rewritten("residual")
    for seed in range(1, 6):
        assert certify(graph, result, seed=seed, primes=1)


@pytest.mark.parametrize(
    "name", ["residual", "attention", pytest.param("drop-last", marks=pytest.mark.slow)]
)
def test_faults_are_what_they_are_in_float64(name: str) -> None:
    """Every fault that changes an output is one, every other change is none (`make mutants` tries all of them)."""
    graph, result = rewritten(name)
    x = graph.args[0]
    wanted = Evaluator(graph.module, Float64())(x)
    caught = 0
    for fault, wrong in islice(mutants(result), 0, None, 2):
        found = Evaluator(wrong.module, Float64())(x)
        error = max(map(_off, found, wanted))
        state = certify(graph, wrong, primes=1).state
        assert state == ("certified" if error < 1e-12 else "failed"), (fault, error)
        caught += state == "failed"
    assert caught >= 20


def _off(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).abs().max() / wanted.abs().max()).nan_to_num(torch.inf))


class Scaled(nn.Module):
    """A block whose branches come in through a LayerScale of 1e-6."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(width, width), nn.Linear(width, 3)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


def scaled() -> tuple[Graph, Graph]:
    torch.manual_seed(0)
    net = perturb(Scaled())
    with torch.no_grad():
        net.scale.copy_(1e-6 * (0.5 + torch.rand(8)))  # type: ignore[operator]
    graph = capture(net, (torch.randn(2, 5, 8),))
    return graph, run_pipeline(graph, parse(CENTRED))[0]


def test_a_fault_that_float32_does_not_see() -> None:
    graph, result = scaled()
    assert certify(graph, result)
    writer = [node for node in result.nodes if op_name(node) == "linear" and not is_static(node)][2]
    centred = writer.args[1]
    assert isinstance(centred, fx.Node)
    assert op_name(centred) == "sub"
    Rewriter(result).set_argument(writer, 1, centred.args[0])
    result.recompile()
    x = graph.args[0]
    with torch.no_grad():
        native, wanted = result.module(x)[0], graph.module(x)[0]
    assert _off(native, wanted) < 16 * 2**-23
    found = certify(graph, result)
    assert found.state == "failed"
    assert not found.ok
    assert found.outputs[0].state == "differs"
    assert "elements" in found.outputs[0].why


class Turned(nn.Module):
    """Keys with a bias, turned by their place: the bias is seen, as it is not without the turn."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        if self.turned:
            angle = torch.arange(x.shape[1])[:, None] / torch.arange(1, 5)
            q, k = (_turn(part, angle) for part in (q, k))
        return F.scaled_dot_product_attention(q, k, self.v(x))


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


@pytest.mark.parametrize("turned", [False, True])
def test_the_bias_of_keys(turned: bool) -> None:
    graph = capture(perturb(Turned(turned)), (torch.randn(2, 5, 8),))
    result = graph.copy()
    keys = [node for node in result.nodes if op_name(node) == "linear"][1]
    Rewriter(result).set_argument(keys, 2, None)
    result.recompile()
    assert certify(graph, result).state == ("failed" if turned else "certified")


def _with(middle: Callable[[Tensor], Any]) -> nn.Module:
    """A norm that folds, something else, and a norm behind it."""
    return network(
        lambda m, x: (m.head(m.norm(middle(m.a(m.stem(x))))), m.other(m.stem(x))),
        stem=nn.Linear(6, 6),
        a=Branch(),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, 3),
        other=nn.Linear(6, 2),
    )


def _certificate(middle: Callable[[Tensor], Any], change: str = "") -> Certificate:
    graph = capture(_with(middle), (torch.randn(2, 5, 6),), dynamic=None)
    result, _ = run_pipeline(graph, parse(CENTRED))
    if change:
        node = next(n for n in result.nodes if n.name.startswith(change))
        Rewriter(result).set_argument(node, 2, None)
        result.recompile()
    return certify(graph, result)


def test_what_is_the_same_in_front_of_an_unknown_op_is_the_same_behind_it() -> None:
    found = _certificate(torch.special.bessel_j0)
    assert found.state == "certified"
    (uncovered,) = found.uncovered
    assert uncovered.op == "special_bessel_j0"
    assert uncovered.count == 1
    assert "self.wiring" in uncovered.lines[0]


def test_a_difference_behind_an_unknown_op_is_no_fault() -> None:
    graph = capture(_with(torch.special.bessel_j0), (torch.randn(2, 5, 6),), dynamic=None)
    wrong = graph.copy()
    linears = [node for node in wrong.nodes if op_name(node) == "linear" and not is_static(node)]
    for linear in (linears[0], linears[-1]):
        Rewriter(wrong).set_argument(linear, 2, None)
    wrong.recompile()
    found = certify(graph, wrong)
    assert [output.state for output in found.outputs] == ["unknown", "differs"]
    assert "behind `special_bessel_j0`" in found.outputs[0].why
    assert found.state == "failed"


def test_a_fault_behind_an_unknown_op_whose_operands_are_the_same() -> None:
    graph = capture(_with(torch.special.bessel_j0), (torch.randn(2, 5, 6),), dynamic=None)
    wrong = graph.copy()
    heads = [node for node in wrong.nodes if op_name(node) == "linear" and not is_static(node)]
    Rewriter(wrong).set_argument(heads[3], 2, None)
    wrong.recompile()
    assert [output.state for output in certify(graph, wrong).outputs] == ["differs", "equal"]


def test_random_numbers_are_the_same_ones_in_both() -> None:
    found = _certificate(lambda x: F.dropout(x, 0.5, training=True))
    assert [output.state for output in found.outputs] == ["equal", "equal"]
    (uncovered,) = found.uncovered
    assert "random" in uncovered.why
    assert "norm" in found.covered


def test_what_differs_in_front_of_random_numbers_is_unknown() -> None:
    found = _certificate(lambda x: F.dropout(x, 0.5, training=True), "linear")
    assert found.outputs[0].state == "unknown"
    assert "random" in found.outputs[0].why
    assert "norm" in found.left


def test_a_decision_by_value_is_not_certified() -> None:
    graph, _ = rewritten("residual")
    result, _ = run_pipeline(graph, parse("canonicalize,fold-affine,quantize-weights,restore"))
    found = certify(graph, result)
    assert found.state == "partly"
    assert "on_grid" in found.outputs[0].why


def test_baked_weights_are_refused() -> None:
    graph, result = rewritten("residual")
    baked, _ = run_pipeline(result, parse("bake"))
    with pytest.raises(ValueError, match="un-baked"):
        certify(graph, baked)


def test_free_sizes_are_small() -> None:
    net = perturb(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)))
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    graph = capture(net, (torch.randn(2, 3, 96, 128),), dynamic=(axes,))
    found = certify(graph, run_pipeline(graph, parse(FOLD))[0])
    assert found
    assert found.sizes.endswith(":1x3x64x64")
