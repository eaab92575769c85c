"""Every method of normalisation: what folds of it, what stays and why, exactly."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import CaptureError
from normfold.ir import capture
from tests.methods.page import HEAD, PAGE, TAIL, row, written
from tests.methods.papers import PAPERS
from tests.methods.table import EXPECTED, Codebook, found, methods
from tests.nets import Compose

METHODS = {method.name: method for method in methods()}


@pytest.mark.parametrize("name", METHODS)
def test_what_becomes_of_it(name: str) -> None:
    result = found(METHODS[name])
    assert (result.gone, result.left, " ".join(result.codes)) == EXPECTED[name]
    assert result.certificate == "certified"
    assert result.error <= 1e-10
    cells = row(name, result).strip("| ").split(" | ")
    assert written()[name] == cells[1:-1]


@pytest.mark.parametrize(("paper", "what", "tests"), PAPERS)
def test_what_is_said_of_a_paper_has_its_test(
    paper: str, what: str, tests: tuple[str, ...]
) -> None:
    assert f"| {paper} | {what} |\n" in PAGE.read_text()
    for test in tests:
        file, _, name = test.partition("::")
        if not name:
            assert test in METHODS
            continue
        tree = ast.parse((PAGE.parents[1] / "tests" / file).read_text())
        assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}


def test_the_page_has_them_all() -> None:
    assert list(written()) == list(METHODS) == list(EXPECTED)
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert text.endswith(TAIL)


def test_a_loop_until_convergence_is_named_with_its_line() -> None:
    def solve(self: Any, x: Tensor) -> Any:
        z = torch.zeros_like(x)
        while (self.of(z) + x - z).norm() > 1e-3:
            z = self.of(z) + x
        return z

    with pytest.raises(CaptureError) as caught:
        capture(Compose(solve, of=nn.Linear(6, 6)), (torch.randn(2, 6),))
    assert f"{__file__}:" in str(caught.value.where)
    assert "while" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "code"),
    [([-1.7123, -0.4049, 0.1017, 0.3571, 2.2391], "NF136"), ([-0.5, -0.25, 0.0, 0.25, 0.5], "")],
)
def test_weights_of_a_learned_table_stay_floats(table: list[float], code: str) -> None:
    net = Codebook().eval()
    net.register_buffer("index", torch.arange(128) % 5)
    net.first, net.norm = nn.Linear(6, 32), nn.BatchNorm1d(32).eval()
    graph = capture(net, (torch.randn(4, 6),))
    graph.module.values.data = torch.tensor(table)
    _, report = normfold.run(graph, "bake,keep-grids,bake", verify="off")
    found = {item.site: item for item in report.passes[1].declined}
    assert found.pop("first").code == "NF131"
    assert [(item.code, item.detail) for item in found.values()] == (
        [(code, "5 values")] if code else []
    )


@pytest.mark.parametrize("kind", ["gate", "attention", "softmax"])
def test_what_is_no_norm_is_not_called_one(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        if kind == "gate":  # squeeze and excite, by deviations
            return x * torch.sigmoid(self.of(x.std(1, keepdim=True).expand_as(x)))
        if kind == "attention":
            return x * self.of(x).softmax(-1)
        return x.exp() / x.exp().sum(-1, keepdim=True)

    graph = capture(Compose(forward, of=nn.Linear(6, 6)), (torch.randn(2, 6),))
    _, report = normfold.run(graph, "canonicalize,fold-affine,bake")
    assert not [item for item in report.sites if item.kind == "input-norm"]
