"""Choices by value: taken over from the network beside, with the numbers of the own one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import Graph, capture
from normfold.ir.graph import op_name
from normfold.judge.certificate import certify
from normfold.rewrite import Rewriter
from tests.nets import perturb
from tests.passes.centred import network

CHOICES: dict[str, Callable[[Tensor], Any]] = {
    "topk": lambda x: x.topk(2, 1)[0],
    "topk-of-one-row": lambda x: x[0, :, 0].topk(2)[0],
    "sort": lambda x: x.sort(1, descending=True),
    "max": lambda x: x.max(1),
    "max-keepdim": lambda x: x.max(1, keepdim=True),
    "kthvalue": lambda x: x.kthvalue(2, -1),
    "argmax": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "argsort": lambda x: x.gather(1, x.argsort(1)),
    "cummax": lambda x: x.cummax(1),
}


def made(choice: Callable[[Tensor], Any]) -> Graph:
    torch.manual_seed(0)
    net = network(lambda m, x: choice(m.b(F.silu(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 5))
    return capture(perturb(net), (torch.randn(2, 5, 4),))


@pytest.mark.parametrize("name", CHOICES)
def test_the_same_in_front_is_the_same_behind(name: str) -> None:
    graph = made(CHOICES[name])
    assert certify(graph, graph.copy()).state == "certified"


@pytest.mark.parametrize("name", CHOICES)
def test_other_numbers_differ_and_places_are_unknown(name: str) -> None:
    graph = made(CHOICES[name])
    wrong = graph.copy()
    first = next(node for node in wrong.nodes if op_name(node) == "linear")
    Rewriter(wrong).set_argument(first, 2, None)
    wrong.recompile()
    numbers, *places = certify(graph, wrong).outputs
    assert numbers.state == "differs"
    assert "it begins at `linear`" in numbers.why
    assert all(output.state == "unknown" for output in places)


def test_an_unknown_function_of_other_numbers_is_unknown() -> None:
    graph = made(torch.special.bessel_j0)
    wrong = graph.copy()
    first = next(node for node in wrong.nodes if op_name(node) == "linear")
    Rewriter(wrong).set_argument(first, 2, None)
    wrong.recompile()
    (output,) = certify(graph, wrong).outputs
    assert output.state == "unknown"
    assert "behind `special_bessel_j0`" in output.why
