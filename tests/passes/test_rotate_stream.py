"""rotate-stream: exactly the same network, and no feature larger than the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.rotation import hadamard, matrix, order
from tests.nets import perturb
from tests.passes.judge import golden_pass, judge, right
from tests.ranges.nets import Stack

CENTRED = "canonicalize,fold-affine{split-norms=true},center-stream"


def rms(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6)


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (1, 1),
        (2, 2),
        (6, 2),
        (12, 12),
        (28, 28),
        (36, 36),
        (96, 96),
        (112, 112),
        (768, 768),
        (100, 20),
    ],
)
def test_orders(width: int, wanted: int) -> None:
    assert order(width) == wanted
    h = hadamard(wanted)
    assert bool((h.abs() == 1).all())
    assert torch.equal(h @ h.T, wanted * torch.eye(wanted))


@pytest.mark.parametrize("width", [2, 4, 6, 24, 32, 40])
def test_the_matrix_is_orthogonal(width: int) -> None:
    m = matrix(width, 3).double() / order(width) ** 0.5
    torch.testing.assert_close(m @ m.T, torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("norm", [nn.LayerNorm, rms])
def test_equal(width: int, norm: type[nn.Module]) -> None:
    graph = capture(perturb(Stack(width, norm)), (torch.randint(0, 11, (2, 6)),))
    outcome = right(judge(graph, f"{CENTRED},rotate-stream,restore"))
    (report,) = (item for item in outcome.reports if item.name == "rotate-stream")
    assert [applied.detail for applied in report.applied] == ["4 norms, 0 explicit ops"] * 4


def test_an_odd_width_cannot_be_rotated() -> None:
    graph = capture(perturb(Stack(15)), (torch.randint(0, 11, (2, 6)),))
    _, reports = run_pipeline(graph, parse(f"{CENTRED},rotate-stream"))
    assert not reports[-1].applied


def test_outliers_are_spread() -> None:
    module = perturb(Stack(32))
    with torch.no_grad():  # one feature a hundred times as large as the others
        module.embed.weight[:, 5] *= 100  # type: ignore[union-attr,index,operator]
    graph = capture(module, (torch.randint(0, 11, (2, 6)),))
    plain, _ = run_pipeline(graph, parse(f"{CENTRED},restore,bake"))
    rotated, _ = run_pipeline(graph, parse(f"{CENTRED},rotate-stream,restore,bake"))
    assert _peak(rotated) < 0.3 * _peak(plain)


def _peak(graph: object) -> float:
    """Largest value over root mean square, of what the first norm reads."""
    peaks = []

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if op_name(n) == "rms_norm":
                source = n.args[0]
                assert isinstance(source, torch.fx.Node)
                read = self.env[source]
                peaks.append(float(read.abs().max() / read.square().mean().sqrt()))
            return value

    with torch.no_grad():
        Seen(graph.module).run(*graph.args)  # type: ignore[attr-defined]
    return peaks[0]


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(perturb(Stack(16)), (torch.randint(0, 11, (2, 6)),))
    golden_pass("rotate-stream/stack", graph, CENTRED)
