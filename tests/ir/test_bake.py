"""The baker: names, what stays in the module, merging of equal expressions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normfold.ir import Graph, capture, expressions
from normfold.ir.expressions import deduplicate, is_static, roots
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, Encoder, Residual, conv, perturb

IMAGE = (2, 4, 5, 6)
FOLDED = parse("canonicalize,fold-affine,restore,bake")


def baked(module: nn.Module, *inputs: Tensor) -> Graph:
    return run_pipeline(capture(perturb(module), inputs), FOLDED)[0]


def owned(graph: Graph) -> set[str]:
    """Names of all tensors that the module holds."""
    module = graph.module
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name for name, _ in tensors}


def read(graph: Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "get_attr"}


@pytest.mark.parametrize(
    ("module", "shape", "names"),
    [
        (Residual(), IMAGE, {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}),
        (nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)), IMAGE, {"0.weight", "0.bias"}),
        (nn.Sequential(nn.BatchNorm2d(4), conv(padding=0)), IMAGE, {"1.weight", "1.bias"}),
        (
            nn.Sequential(nn.BatchNorm2d(4), conv(padding=0, bias=False)),
            IMAGE,
            {"1.weight", "1.bias"},
        ),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (2, 4), {"1.weight", "1.bias"}),
        (
            nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU()),
            IMAGE,
            {"0.weight", "0.bias"},
        ),
        (
            Encoder(),
            (2, 5, 8),
            {
                f"{n}.{w}"
                for n in ("stem", "qkv", "out", "up", "down", "head")
                for w in ("weight", "bias")
            },
        ),
    ],
    ids=["residual", "no-bias", "forward", "forward-no-bias", "linear", "weight-norm", "encoder"],
)
def test_names_are_kept(module: nn.Module, shape: tuple[int, ...], names: set[str]) -> None:
    graph = baked(module, torch.randn(shape))
    assert read(graph) == owned(graph) == names


def test_a_shared_weight_becomes_two_tensors_with_two_names() -> None:
    net = Compose(
        lambda m, x: (m.norm(m.conv(x)), m.conv(x + 1)), conv=conv(), norm=nn.BatchNorm2d(4)
    )
    graph = baked(net, torch.randn(IMAGE))
    assert read(graph) == owned(graph)
    values = dict(graph.module.named_parameters())
    weights = sorted(name for name in values if "weight" in name)
    assert len(weights) == 2
    assert weights[0] == "conv.weight"
    assert torch.equal(values["conv.weight"], net.conv.weight), "the raw one keeps its name"  # type: ignore[union-attr, arg-type]


def test_nothing_unused_is_left() -> None:
    graph = baked(
        nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), Residual()), torch.randn(IMAGE)
    )
    assert owned(graph) == read(graph)
    assert not [node for node in graph.nodes if is_static(node) and node.op != "get_attr"]
    assert not [name for name, _ in graph.module.named_modules() if "running" in name]
    assert sum(p.numel() for p in graph.module.parameters()) == 3 * (4 * 4 * 9 + 4)
    assert not any(p.requires_grad for p in graph.module.parameters())


def test_the_unbaked_graph_keeps_its_parameters() -> None:
    before = capture(perturb(Residual()), (torch.randn(IMAGE),))
    unbaked, _ = run_pipeline(before, parse("canonicalize,fold-affine"))
    names = owned(unbaked)
    run_pipeline(unbaked, parse("bake"))
    assert owned(unbaked) == names
    assert not unbaked.baked


def test_one_expression_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each root is evaluated alone, and nothing keeps its intermediate values."""
    from normfold.rewrite import baker

    seen = []
    evaluate = expressions.evaluate

    def counted(module: nn.Module, node: torch.fx.Node, *rest: object) -> object:
        assert not rest, "a cache would keep every value"
        seen.append(node)
        return evaluate(module, node)

    unbaked, _ = run_pipeline(
        capture(perturb(Residual()), (torch.randn(IMAGE),)), parse("canonicalize,fold-affine")
    )
    wanted = sum(root.op != "get_attr" for root in roots(unbaked.module.graph))
    monkeypatch.setattr(baker, "evaluate", counted)
    run_pipeline(unbaked, parse("bake"))
    assert len(seen) == wanted == 4


def test_equal_expressions_are_merged() -> None:
    """Two call sites of one normalised convolution share one weight expression, and one baked weight."""
    net = Compose(
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x * 2)), conv=conv(), norm=nn.BatchNorm2d(4)
    )
    unbaked, _ = run_pipeline(
        capture(perturb(net), (torch.randn(IMAGE),)), parse("canonicalize,fold-affine")
    )
    assert deduplicate(unbaked.module.graph) == 0, "the passes have merged them already"
    convolutions = [node for node in unbaked.nodes if op_name(node) == "conv2d"]
    assert convolutions[0].args[1:3] == convolutions[1].args[1:3]
    done, _ = run_pipeline(unbaked, parse("bake"))
    assert read(done) == {"conv.weight", "conv.bias"}


def test_random_parameters_are_not_constants() -> None:
    """Noise drawn at every call is no parameter expression."""
    net = Compose(lambda m, x: m.conv(x) + torch.rand(4, 1, 1), conv=conv())
    graph = baked(net, torch.randn(IMAGE))
    x = graph.args[0]
    assert not torch.equal(graph(x), graph(x))
