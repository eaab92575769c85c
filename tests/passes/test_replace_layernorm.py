"""replace-layernorm: in eval mode every kind is the least-squares affine of the norm's output, and folds away."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.graph import op_name
from normfold.ir.sites import trainable_path
from normfold.job.presets import trained
from normfold.nn import PRepBN
from normfold.passes.replace_layernorm import ReplaceLayernorm
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.offline import KINDS
from tests.passes.centred import TOKENS, D, pre_norm
from tests.passes.judge import golden_pass

RELATIVE = 1e-12


def net() -> nn.Module:
    """Two pre-LN branches and a norm in front of the head: three LayerNorms."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x)
        x = x + m.b(x)
        return m.head(m.norm(x))

    return pre_norm(wiring)


@functools.cache
def _captured() -> Graph:
    torch.manual_seed(1)
    return capture(net(), (torch.randn(TOKENS),))


def graph_with_samples(module: nn.Module | None = None) -> Graph:
    """Of `net`, which is captured once, where no module is given."""
    torch.manual_seed(1)
    graph = capture(module, (torch.randn(TOKENS),)) if module else _captured().copy()
    graph.samples = [((torch.randn(4, *TOKENS[1:]),), {}) for _ in range(5)]
    return graph


def replaced(graph: Graph, options: str = "", after: str = "") -> tuple[Graph, Any]:
    text = f"canonicalize,replace-layernorm{options and '{' + options + '}'}{after}"
    result, reports = run_pipeline(graph, parse(text))
    return result, reports[1]


def values(graph: Graph, name: str, x: Tensor) -> Tensor:
    """Float64 value of a node on one input."""

    found: list[Tensor] = []

    def watch(node: fx.Node, value: Any) -> None:
        if node.name == name:
            found.append(value)

    Evaluator(graph.module, Float64(), watch)(x)
    return found[0]


def norms(graph: Graph) -> int:
    return sum(op_name(node) in ("layer_norm", "rms_norm", "batch_norm") for node in graph.nodes)


def test_golden() -> None:
    golden_pass("replace-layernorm/three", graph_with_samples(), "canonicalize")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_least_squares_affine(kind: str) -> None:
    graph = graph_with_samples()
    result, report = replaced(graph, f"to={kind} ridge=0")
    assert [a.site for a in report.applied] == ["a.norm", "b.norm", "norm"]
    canonical, _ = run_pipeline(graph, parse("canonicalize"))
    x = torch.cat([sample[0][0] for sample in graph.samples or ()]).double()
    core = next(node for node in canonical.nodes if op_name(node) == "layer_norm")
    (affine,) = core.users
    source = core.args[0]
    assert isinstance(source, fx.Node)
    inputs = values(canonical, source.name, x).reshape(-1, D)
    outputs = values(canonical, affine.name, x).reshape(-1, D)
    new = next(node for node in result.nodes if trainable_path(node))
    scale, shift = (result.value(node) for node in new.args[1:3])  # type: ignore[arg-type]
    for channel in range(D):
        columns = torch.stack([inputs[:, channel], torch.ones(len(inputs)).double()], 1)
        best = torch.linalg.lstsq(columns, outputs[:, channel, None]).solution[:, 0]
        found = torch.stack([scale[channel], shift[channel]])
        # the module keeps float32 parameters, and the graph read float32 activations
        torch.testing.assert_close(found, best, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_of_it_folds_away(kind: str) -> None:
    result, _ = replaced(graph_with_samples(), f"to={kind}")
    folded, _ = run_pipeline(result, parse("fold-affine,restore"))
    baked, _ = run_pipeline(folded, parse("bake"))
    assert norms(baked) == 0
    assert not any(op_name(n) in ("mul", "normfold::channel_affine") for n in baked.nodes)
    x = torch.randn(TOKENS)
    (expected,) = torch.utils._pytree.tree_leaves(Evaluator(result.module, Float64())(x))
    for graph, tolerance in ((folded, RELATIVE), (baked, 1e-5)):
        (got,) = torch.utils._pytree.tree_leaves(Evaluator(graph.module, Float64())(x))
        assert float((got - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_follows_its_module(kind: str) -> None:
    """What training changes in the module changes the graph: they share their tensors, also in a copy."""
    result, _ = replaced(graph_with_samples(), f"to={kind}")
    result = result.copy()
    norm = result.trainable[f"norm.{kind}"]
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.25)
    new = next(n for n in result.nodes if trainable_path(n) == f"norm.{kind}")
    scale, shift = norm.affine()  # type: ignore[operator]
    torch.testing.assert_close(result.value(new.args[1]), scale.double(), rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]
    torch.testing.assert_close(result.value(new.args[2]), shift.double(), rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]


def test_prepbn_brings_the_norm_that_it_replaces() -> None:
    module = net()
    norm = module.norm
    assert isinstance(norm, nn.LayerNorm)
    norm.eps = 1e-3
    result, _ = replaced(graph_with_samples(module), "to=prepbn")
    mine = result.trainable["norm.prepbn"]
    assert isinstance(mine, PRepBN)
    torch.testing.assert_close(mine.ln_weight.detach(), norm.weight.detach())
    torch.testing.assert_close(mine.ln_bias.detach(), norm.bias.detach())
    assert mine.ln_eps == pytest.approx(1e-3)


def test_only_what_is_asked_for() -> None:
    result, report = replaced(graph_with_samples(), "norms=b.*|norm")
    assert [a.site for a in report.applied] == ["b.norm", "norm"]
    assert [(d.site, d.code) for d in report.declined] == [("a.norm", "NF126")]
    assert norms(result) == 1


def test_without_samples_nothing_happens() -> None:
    graph = graph_with_samples()
    graph.samples = None
    result, report = replaced(graph)
    assert {d.code for d in report.declined} == {"NF127"}
    assert norms(result) == 3
    assert not report.modified


def test_a_norm_over_two_axes_is_declined() -> None:
    module = pre_norm(
        lambda m, x: m.head(m.norm(m.stem(x))),
        norm=nn.LayerNorm((5, D), elementwise_affine=False),
    )
    _, report = replaced(graph_with_samples(module))
    assert [(d.code, d.detail) for d in report.declined] == [("NF116", "it runs over several axes")]


def test_a_norm_over_one_feature_is_declined() -> None:
    module = pre_norm(lambda m, x: m.head(m.stem(x)) + m.norm(x[..., :1]), norm=nn.LayerNorm(1))
    _, report = replaced(graph_with_samples(module))
    assert [d.code for d in report.declined] == ["NF124"]


def test_a_norm_without_affine_and_one_that_is_read_twice() -> None:
    module = pre_norm(
        lambda m, x: (lambda y: m.head(y) + F.gelu(y[..., :3]))(m.norm(m.stem(x))),
        norm=nn.LayerNorm(D, elementwise_affine=False),
    )
    result, report = replaced(graph_with_samples(module), "to=un")
    assert len(report.applied) == 1
    assert norms(result) == 0


def test_a_dead_channel_gets_no_gain() -> None:
    module = net()
    stem = module.stem
    assert isinstance(stem, nn.Linear)
    with torch.no_grad():
        stem.weight[2] = 0
    result, _ = replaced(graph_with_samples(module), "norms=a.norm")
    new = next(node for node in result.nodes if trainable_path(node))
    scale = result.value(new.args[1])  # type: ignore[arg-type]
    assert abs(float(scale[2])) < 1e-3
    assert torch.isfinite(scale).all()


def test_the_original_stays_as_it_is() -> None:
    module = net()
    graph = graph_with_samples(module)
    x = torch.randn(TOKENS)
    before = module(x)
    replaced(graph, "to=prepbn", ",fold-affine,restore,bake")
    assert torch.equal(module(x), before)
    assert torch.equal(graph.module(x), before)


def test_every_kind_can_be_asked_for() -> None:
    """What the sources of `normfold.nn` say, read without torch, is what the pass takes."""
    assert set(KINDS) == set(trained())
    for kind in KINDS:
        assert ReplaceLayernorm(to=kind).to == kind
    with pytest.raises(UsageError, match="there is no norm `powernorm`"):
        ReplaceLayernorm(to="powernorm")


def test_it_says_that_the_function_changes() -> None:
    assert ReplaceLayernorm.exactness.value == "changes-function"


def test_a_norm_that_reads_a_norm() -> None:
    """As Swin's first block behind its patch embedding: replaced in turn, and folded."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.norm(m.stem(x))
        return m.head(x + m.a(x))

    graph = graph_with_samples(pre_norm(wiring))
    result, report = replaced(graph, after=",fold-affine,restore,bake")
    assert len(report.applied) == 2
    assert not {"layer_norm", "normfold::channel_affine"} & {op_name(node) for node in result.nodes}
