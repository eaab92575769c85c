"""Bisect names the pass that breaks the verdict and the site in it, and nothing where all is well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.text import graph_text
from normfold.progress import Progress
from normfold.rewrite import Pass, parse
from tests.judge.broken_passes import DropBias, ScaleLinears, SpoilRow
from tests.judge.nets import FOLDED, images, small
from tests.judge.test_budgets import OwnBudget, Shrink

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


def test_what_the_certificate_alone_sees_is_found() -> None:
    """No input reads the row, so that the algebra agrees: the pass and its site are named all the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(1000, 4), nn.Linear(4, 3)).eval()
    graph = capture(net, (torch.randint(0, 500, (2, 5)),))
    pipeline = [*parse("canonicalize"), SpoilRow(), *parse("bake")]
    _, report = normfold.run(graph, pipeline)
    assert [text.partition(":")[0] for text in report.failures()] == ["certificate"]
    culprit = normfold.bisect(graph, pipeline)
    assert culprit is not None
    assert (culprit.spec, culprit.site) == ("spoil-row", "0")
    assert culprit.after.ok
    assert culprit.certificate is not None
    assert not culprit.certificate.ok


@pytest.mark.parametrize(
    ("item", "right"),
    [
        (OwnBudget(0.01), True),
        (OwnBudget(0.1), False),
        (OwnBudget(0.0), True),
        (ScaleLinears(), True),
        (ScaleLinears(("layers.3",)), False),
    ],
)
def test_a_conversion_and_bisect_judge_alike(chain: Graph, item: Pass, right: bool) -> None:
    pipeline = [*parse("canonicalize"), item, *parse("bake")]
    _, report = normfold.run(chain, pipeline, verify="each")
    culprit = normfold.bisect(chain, pipeline)
    assert (report.ok, culprit is None) == (right, right)
    if culprit is not None:
        failed = next(check for check in report.all_checks() if not check.ok)
        assert (culprit.spec, culprit.after.kind) == (str(item), failed.kind)


def test_the_error_that_is_given_replaces_the_budgets(chain: Graph) -> None:
    pipeline = [*parse("canonicalize"), Shrink(0.01), *parse("bake")]
    with pytest.raises(UsageError, match="`shrink` is approximate, and nothing says"):
        normfold.bisect(chain, pipeline)
    assert normfold.bisect(chain, pipeline, max_error=0.1, export=True) is None
    culprit = normfold.bisect(chain, pipeline, max_error=1e-4)
    assert culprit is not None
    assert culprit.spec == "shrink"
    assert normfold.bisect(chain, [OwnBudget(0.01)], max_error=1e-4) is not None
    with pytest.raises(UsageError, match="`--max-error`: no pass is approximate"):
        normfold.bisect(chain, FOLDED, max_error=0.1)


def test_a_wrong_capture_is_no_fault_of_a_pass(chain: Graph) -> None:
    graph = chain.copy()
    graph.original = nn.Sequential(Chain(), nn.Linear(6, 6)).eval()
    culprit = normfold.bisect(graph, "canonicalize")
    assert culprit is not None
    assert (culprit.spec, culprit.file, culprit.after.kind) == ("", "", "capture")
    assert culprit.words.startswith("the captured graph does not compute")


def test_random_numbers_are_no_fault_of_a_pass() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(UsageError, match=r"(?s)nothing to bisect.*draws random numbers"):
        normfold.bisect(capture(Noisy(), (torch.randn(2, 6),)), "canonicalize")
