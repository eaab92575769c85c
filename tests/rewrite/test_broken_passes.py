"""Passes that break, and items that are none: the error names them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import fx, nn

import normfold
from normfold.errors import PassError, UsageError
from normfold.ir import Graph
from normfold.passes.bake import Bake
from normfold.rewrite import FxPass, Match, Pass, Rewriter, parse


def graph() -> Graph:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    return normfold.capture(module, (torch.randn(2, 8),))


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("canonicalize", "names go in one text"),
        (Bake, "make one of it: `Bake()`"),
        (lambda module: module, "`normfold.rewrite.FxPass\\(function\\)`"),
        (3, "passes are objects"),
    ],
)
def test_items_that_are_no_passes(item: Any, hint: str) -> None:
    with pytest.raises(UsageError, match="an item of the pipeline is not a pass") as caught:
        normfold.run(graph(), [*parse("canonicalize"), item])
    assert hint.replace("\\", "") in str(caught.value)


@dataclass(frozen=True)
class Breaks(Pass):
    """Raises in one of its three steps."""

    name: ClassVar[str] = "breaks"
    step: str = "match"

    def match(self, graph: Graph) -> Iterable[Match]:
        if self.step == "none":
            return None  # type: ignore[return-value]
        if self.step == "nodes":
            return list(graph.nodes)  # type: ignore[arg-type]
        self._raise("match")
        return [Match(next(node for node in graph.nodes if node.op == "call_function"))]

    def check(self, graph: Graph, match: Match) -> Match:
        self._raise("check")
        return match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        self._raise("rewrite")

    def _raise(self, step: str) -> None:
        if step == self.step:
            raise ValueError("boom")


@pytest.mark.parametrize("step", ["match", "check", "rewrite", "none", "nodes"])
def test_a_pass_that_breaks_is_named(step: str) -> None:
    with pytest.raises(PassError, match="`breaks`") as caught:
        normfold.run(graph(), [*parse("canonicalize"), Breaks(step), *parse("bake")], verify="off")
    assert ("boom" in str(caught.value)) == (step in ("match", "check", "rewrite"))


def raises(module: fx.GraphModule) -> None:
    raise ValueError("boom")


def takes_an_operand(module: fx.GraphModule) -> None:
    next(node for node in module.graph.nodes if "relu" in str(node.target)).args = ()


def adds_an_output(module: fx.GraphModule) -> None:
    relu = next(node for node in module.graph.nodes if "relu" in str(node.target))
    end = next(node for node in module.graph.nodes if node.op == "output")
    end.args = ((*end.args[0], relu),)


@pytest.mark.parametrize("function", [raises, takes_an_operand, adds_an_output])
def test_an_fx_pass_that_breaks_is_named(function: Callable[[fx.GraphModule], Any]) -> None:
    with pytest.raises(PassError, match=f"`{function.__name__}`"):
        normfold.run(graph(), [*parse("canonicalize"), FxPass(function), *parse("bake")])
