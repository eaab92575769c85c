"""`--max-error` and `--half-budget` of convert, verify and bisect, and what bisect prints."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.cli.conftest import TINY, Cli

APPROXIMATE = "canonicalize,tests.judge.test_budgets:Shrink,bake"
BUDGET = "canonicalize,tests.judge.test_budgets:OwnBudget,bake"


def test_a_file_in_half_precision(cli: Cli) -> None:
    assert cli("convert", TINY, "--precision", "fp16").status == 0
    for command in ("verify", "bisect"):
        plain = cli(command, TINY, "out/tiny.onnx")
        assert plain.status == 1
        assert "--half-budget 0.02" in plain.out
        assert cli(command, TINY, "out/tiny.onnx", "--half-budget", "0.02").status == 0
    ran = cli("verify", TINY, "out/tiny.onnx", "--half-budget", "0.02", "--max-error", "0.01")
    assert ran.out.endswith("verdict: within 0.03 of the original\n")
    ran = cli("verify", TINY, "out/tiny.onnx", "--half-budget", "1e-5", "--layers")
    assert ran.status == 1
    assert ran.out.endswith("verdict: NOT within 1e-05 of the original\n")
    ran = cli("verify", TINY, TINY, "--half-budget", "0.02")
    assert ran.status == 2
    ran.one_error("`--half-budget`: nothing is in half precision")


def test_what_an_approximate_pass_may_cost(cli: Cli) -> None:
    assert cli("bisect", TINY, "--passes", BUDGET).status == 0
    assert cli("bisect", TINY, "--passes", BUDGET, "--max-error", "1e-4").status == 1
    assert cli("bisect", TINY, "--passes", APPROXIMATE, "--max-error", "0.1").status == 0
    for given in (("bisect",), ("convert",)):
        ran = cli(*given, TINY, "--passes", APPROXIMATE)
        assert ran.status == 2
        ran.one_error("`shrink` is approximate, and nothing says what it may cost")


@pytest.mark.parametrize("command", ["convert", "bisect"])
def test_a_budget_that_nothing_may_spend(cli: Cli, command: str) -> None:
    ran = cli(command, TINY, "--max-error", "0.1")
    assert ran.status == 2
    ran.one_error("`--max-error`: no pass is approximate", "--half-budget")


def test_the_lines_of_a_report_are_told_apart(cli: Cli) -> None:
    ran = cli("convert", TINY, "--passes", BUDGET, "--json")
    assert ran.status == 0
    made = [item["check"]["kind"] for item in ran.json["passes"] if item["check"]]
    assert made == ["approximation-unbaked", "approximation"]


def test_a_finding_without_a_part_that_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is said all the same, with the reason, and the exit code is that of a finding."""
    assert cli("convert", TINY, "--verify", "off").status == 0
    model = onnx.load("out/tiny.onnx")
    bias = next(item for item in model.graph.initializer if item.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * 2, bias.name))
    onnx.save(model, "wrong.onnx")
    plain = cli("bisect", TINY, "wrong.onnx")
    monkeypatch.setattr("normfold.faults.failing_parts", lambda *given: iter(()))
    ran = cli("bisect", TINY, "wrong.onnx", "--reproducer", "fault")
    assert (plain.status, ran.status, ran.err) == (1, 1, "")
    assert ran.out.startswith(plain.out)
    assert ran.out[len(plain.out) :].startswith("no part written: no part of the network fails by ")
    assert not Path("fault").exists()
    data = cli("bisect", TINY, "wrong.onnx", "--reproducer", "fault", "--json").json
    assert data["file"] == "wrong.onnx"
    assert data["no_reproducer"].startswith("no part of the network fails by itself")
