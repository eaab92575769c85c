"""correct-bias: mean errors vanish, but for the heads'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.domains.observed import measure
from normfold.ir import Graph, capture
from normfold.ir.graph import op_name
from normfold.ir.intervals import note_read_mean
from normfold.ir.provenance import module_path
from normfold.ops.integers import weighted
from normfold.ranges.ranges import merge_ranges
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.passes.judge import golden_pass

X = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(0)) + 0.5
COARSE = "quantize-weights{bits=3}"


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        Compose(
            lambda m, x: m.head(F.relu(m.second(F.relu(m.first(x)))).mean((2, 3))),
            first=nn.Conv2d(3, 8, 3),
            second=nn.Conv2d(8, 8, 3, bias=False),
            head=nn.Linear(8, 5),
        )
    )


def means(graph: Graph) -> dict[str, Tensor]:
    """Mean of what each linear op gives, per channel."""
    found = {}

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            linear = weighted(n)
            if linear is not None:
                rest = [dim for dim in range(value.dim()) if dim != linear.out_dim]
                found[module_path(n)] = value.mean(rest)
            return value

    with torch.no_grad():
        Seen(graph.module).run(X)
    return found


def with_samples() -> Graph:
    graph = capture(net(), (X,))
    graph.samples = [((X,), {})]
    merge_ranges(measure(graph, [(X,)]), {})
    return graph


def test_means_are_those_of_the_float_network() -> None:
    graph = with_samples()
    rounded, _ = run_pipeline(graph, parse(COARSE))
    corrected, _ = run_pipeline(graph, parse(f"{COARSE},correct-bias"))
    wanted, plain, found = means(graph), means(rounded), means(corrected)
    for path in ("first", "second"):
        assert float((plain[path] - wanted[path]).abs().max()) > 1e-2
        torch.testing.assert_close(found[path], wanted[path], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("source", ["samples", "analytic"])
def test_products_of_blocks_have_their_bias_behind_them(bias: bool, source: str) -> None:
    torch.manual_seed(0)
    module = perturb(
        Compose(
            lambda m, x: m.head(F.relu(m.second(F.relu(m.first(x))))),
            first=nn.Linear(24, 32),
            second=nn.Linear(32, 16, bias=bias),
            head=nn.Linear(16, 5),
        )
    )
    x = torch.randn(256, 24, generator=torch.Generator().manual_seed(0)) + 1.0
    graph = capture(module, (x,))
    graph.samples = [((x,), {})]
    merge_ranges(measure(graph, [(x,)]), {})
    first = next(node for node in graph.nodes if weighted(node))
    note_read_mean(first, x.mean(0).double())
    blocks = "quantize-weights{bits=4 block=16}"
    rounded, _ = run_pipeline(graph, parse(blocks))
    corrected, reports = run_pipeline(graph, parse(f"{blocks},correct-bias{{source={source}}}"))
    found = [hidden(g, x) for g in (graph, rounded, corrected)]
    assert [item.site for item in reports[-1].declined][-1:] == ["head"]
    for wanted, plain, mended in list(zip(*found, strict=True))[: 2 if source == "samples" else 1]:
        assert float((plain - wanted).abs().max()) > 1e-2
        torch.testing.assert_close(mended, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [5, 16])
def test_a_matrix_on_the_left_has_its_channels_on_another_axis(rows: int) -> None:
    """As in Mamba: the correction goes along the axis of the channels, however many columns there are."""
    torch.manual_seed(0)
    first, head = nn.Linear(8, 16, bias=False), nn.Linear(16, 3)
    module = Compose(
        lambda m, x: m.head(F.relu(m.first.weight @ x.transpose(1, 2)).transpose(1, 2)),
        first=first,
        head=head,
    )
    x = torch.randn(64, rows, 8, generator=torch.Generator().manual_seed(0)) + 1.0
    graph = capture(module, (x,))
    graph.samples = [((x,), {})]
    merge_ranges(measure(graph, [(x,)]), {})
    rounded, _ = run_pipeline(graph, parse(COARSE))
    corrected, _ = run_pipeline(graph, parse(f"{COARSE},correct-bias"))
    wanted, plain, mended = (
        torch.cat([y.mean(-1) for y in hidden(g, x)]) for g in (graph, rounded, corrected)
    )
    assert float((plain - wanted).abs().max()) > 1e-2
    torch.testing.assert_close(mended, wanted, rtol=1e-3, atol=1e-4)


def hidden(graph: Graph, x: Tensor) -> list[Tensor]:
    """Mean of what each ReLU reads, per channel."""
    found = []

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if op_name(n) == "relu":
                found.append(self.env[n.all_input_nodes[0]].mean(0))
            return value

    with torch.no_grad():
        Seen(graph.module).run(x)
    return found


def test_the_head_is_not_corrected() -> None:
    _, reports = run_pipeline(with_samples(), parse(f"{COARSE},correct-bias"))
    assert [item.site for item in reports[-1].declined] == ["head"]
    _, reports = run_pipeline(with_samples(), parse(f"{COARSE},correct-bias{{heads=true}}"))
    assert not reports[-1].declined


def test_from_the_statistics_alone() -> None:
    """(W' - W) E[x], for a mean that is told."""
    graph = capture(net(), (X,))
    first = next(node for node in graph.nodes if weighted(node))
    told = X.mean((0, 2, 3)).double()
    note_read_mean(first, told)
    corrected, reports = run_pipeline(graph, parse(f"{COARSE},correct-bias"))
    assert [item.site for item in reports[-1].applied] == ["first"]
    wanted, found = means(graph)["first"], means(corrected)["first"]
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    plain = means(run_pipeline(graph, parse(COARSE))[0])["first"]
    assert float((found - wanted).norm()) < 0.2 * float((plain - wanted).norm())


@pytest.mark.parametrize("source", ["samples", "analytic"])
def test_nothing_known(source: str) -> None:
    graph = capture(net(), (X,))
    _, reports = run_pipeline(graph, parse(f"{COARSE},correct-bias{{source={source}}}"))
    assert {item.code for item in reports[-1].declined} >= {"NF127"}
    assert not reports[-1].applied
    for item in reports[-1].declined:
        assert not {"norm", "affine"} & set(item.reason.split()), "the site is a linear op"
        known = "no norm's statistics tell its mean" if source == "analytic" else ""
        assert item.code == "NF104" or item.detail == known


def test_golden() -> None:
    golden_pass("correct-bias/three", with_samples(), COARSE)
