"""Bisect names the pass that breaks the verdict and the site in it, and nothing where all is well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.ir import Graph, capture
from normfold.ir.text import graph_text
from normfold.progress import Progress
from normfold.rewrite import Pass, parse
from tests.judge.broken_passes import DropBias, ScaleLinears
from tests.judge.nets import FOLDED, images, small

SITES = tuple(f"layers.{index}" for index in range(6))


class Chain(nn.Module):
    """Six linears with ReLU in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in SITES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x)) + x
        return x


@pytest.fixture(scope="module")
def chain() -> Graph:
    torch.manual_seed(0)
    return capture(Chain().eval(), (torch.randn(2, 6),))


def test_the_broken_pass_is_right_elsewhere(chain: Graph) -> None:
    _, report = normfold.run(chain, [ScaleLinears()], verify="each")
    assert report.ok
    assert [item.site for item in report.passes[0].applied] == list(SITES)
    _, report = normfold.run(chain, [ScaleLinears((SITES[2],))], verify="each")
    assert not report.ok


@pytest.mark.parametrize("wrong", SITES)
@pytest.mark.parametrize("baked", [False, True])
def test_the_pass_and_the_site_are_named(chain: Graph, wrong: str, baked: bool) -> None:
    """Un-baked the algebra judges in float64; behind bake the result in its own dtype."""
    broken: list[Pass] = [ScaleLinears((wrong,))]
    pipeline = [*parse("canonicalize"), *(parse("bake") if baked else []), *broken, *parse("bake")]
    seen: list[Progress] = []
    culprit = normfold.bisect(chain, pipeline, progress=seen.append)
    assert culprit is not None
    assert culprit.spec == f"scale-linears{{wrong={wrong}}}"
    assert culprit.site == wrong
    assert culprit.detail == "scaled by 1.01"
    assert culprit.after.kind == ("rounding" if baked else "algebra")
    assert not culprit.after
    assert culprit.before is not None
    assert culprit.before
    assert [f"{item.stage}: {item.text}" for item in seen] == [
        "canonicalize: ok",
        *(["bake: ok"] if baked else []),
        f"{culprit.spec}: over tolerance",
    ]


def test_the_first_of_two_wrong_sites_is_named(chain: Graph) -> None:
    culprit = normfold.bisect(chain, [ScaleLinears((SITES[4], SITES[1]))])
    assert culprit is not None
    assert culprit.site == SITES[1]


def test_the_first_of_two_broken_passes_is_named(chain: Graph) -> None:
    first, second = ScaleLinears((SITES[5],)), ScaleLinears((SITES[0],))
    culprit = normfold.bisect(chain, [ScaleLinears(), first, second])
    assert culprit is not None
    assert (culprit.spec, culprit.site) == (str(first), SITES[5])


def test_a_pass_on_the_whole_graph_has_no_site(chain: Graph) -> None:
    culprit = normfold.bisect(chain, [ScaleLinears(), DropBias()])
    assert culprit is not None
    assert (culprit.spec, culprit.site) == ("drop-bias", "")
    assert not culprit.after


def test_a_right_pipeline_has_no_culprit_and_nothing_is_changed() -> None:
    graph = capture(small(), (images(),))
    before = graph_text(graph)
    seen: list[Progress] = []
    assert normfold.bisect(graph, FOLDED, progress=seen.append) is None
    assert [f"{item.stage}: {item.text}" for item in seen] == [
        f"{name}: ok" for name in FOLDED.split(",")
    ]
    assert graph_text(graph) == before
