"""convert --to rmsnorm: what is written, what is required, what stays dynamic, what stays tied."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from normfold.targets import RuntimeSession, census
from tests.cli.conftest import TINY, Cli, contents
from tests.cli.transformer_nets import gpt2

GPT2, BERT = "tests.cli.transformer_nets:gpt2", "tests.cli.transformer_nets:bert"
TOKENS = ("--input", "input_ids:2x12:i64")


def test_gpt2_keeps_its_tie_and_its_dynamic_length(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", GPT2, *TOKENS, "--dynamic", "input_ids:1", "--to", "rmsnorm", "-o", "out")
    assert ran.status == 0, ran.err
    assert ": equivalent in onnxruntime " in ran.out.splitlines()[-1]
    report = json.loads((tmp_path / "out" / "gpt2.report.json").read_text())
    assert report["counts"]["layer-norm"] == {"converted": 5}
    (center,) = (item for item in report["passes"] if item["spec"].startswith("center-stream"))
    assert sum(edit.endswith("centred by an op") for edit in center["edits"]) == 1
    assert any(check["kind"] == "onnxruntime-all" for check in report["checks"])
    path = tmp_path / "out" / "gpt2.onnx"
    counted = census(path).ops
    assert counted["RMSNormalization"] == 5
    assert "LayerNormalization" not in counted
    tables = [item for item in onnx.load(path).graph.initializer if 400 in item.dims]
    assert [sorted(item.dims) for item in tables] == [[24, 400]]  # the embedding is stored once

    session, network = RuntimeSession(path), gpt2()
    for batch, length in ((1, 1), (3, 12), (2, 40)):
        tokens = torch.randint(400, (batch, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network(tokens)
        (found,) = session.run([tokens])
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_untie_copies_the_table(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", GPT2, *TOKENS, "--to", "rmsnorm", "--untie", "-o", "out", "--json")
    assert ran.status == 0, ran.err
    (center,) = (item for item in ran.json["passes"] if item["spec"].startswith("center-stream"))
    assert center["spec"] == "center-stream{untie=true}"
    assert not any(edit.endswith("centred by an op") for edit in center["edits"])
    tables = [
        item
        for item in onnx.load(tmp_path / "out" / "gpt2.onnx").graph.initializer
        if 400 in item.dims
    ]
    assert len([item for item in tables if len(item.dims) == 2]) == 2


def test_bert_is_left_with_a_note(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", BERT, *TOKENS, "--to", "rmsnorm", "-o", "out")
    assert ran.status == 0, ran.err
    assert "note      center-stream changed nothing: it declined NF118 (5), NF120 (1)" in ran.out
    report = json.loads((tmp_path / "out" / "bert.report.json").read_text())
    assert report["counts"]["layer-norm"] == {"left": 6}
    (center,) = (item for item in report["passes"] if item["spec"] == "center-stream")
    for declined in center["declined"]:
        head = "transform" in declined["site"]  # a norm behind GELU
        assert declined["code"] == ("NF120" if head else "NF118")
        assert declined["node"].startswith("gelu" if head else "add")


def test_bert_fails_where_a_conversion_is_required(cli: Cli, tmp_path: Path) -> None:
    command = ("convert", BERT, *TOKENS, "--to", "rmsnorm", "-o", "out")
    ran = cli(*command, "--require", "center-stream>=1")
    assert ran.status == 1
    assert "UNMET     center-stream>=1, found 0" in ran.out
    assert ran.out.splitlines()[-1] == "NOT written: center-stream>=1, found 0"
    assert sorted(contents(tmp_path / "out")) == ["bert.report.json"]  # no artefact
    assert json.loads((tmp_path / "out" / "bert.report.json").read_text())["ok"] is False


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("center-stream>1", ("`center-stream` is required, and is neither a pass that runs",)),
        ("fold-affine=>1", ("a requirement cannot be read", "write NAME>=N")),
        ("fold-affine>=", ("a requirement cannot be read",)),
    ],
)
def test_refused_requirements(cli: Cli, text: str, parts: tuple[str, ...]) -> None:
    ran = cli("convert", TINY, "--require", text)
    assert ran.status == 2
    ran.one_error(*parts)


@pytest.mark.parametrize(("sign", "status"), [("==3", 1), (">=1", 0), ("<1", 1), ("<=9", 0)])
def test_requirements_compare(cli: Cli, sign: str, status: int) -> None:
    ran = cli("convert", TINY, "--require", f"fold-affine{sign}", "-o", "out", "--json")
    assert ran.status == status
    assert bool(ran.json["unmet"]) == bool(status)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ids:1", ("`ids` has no axis 1", "input_ids (2, 12)")),
        ("input_ids:7", ("`input_ids` has no axis 7",)),
        ("input_ids", ("a dynamic axis cannot be read", "write NAME:AXIS")),
    ],
)
def test_refused_dynamic_axes(cli: Cli, text: str, parts: tuple[str, ...]) -> None:
    ran = cli("convert", GPT2, *TOKENS, "--dynamic", text)
    assert ran.status == 2
    ran.one_error(*parts)


@pytest.mark.slow
def test_requirements_on_the_file_that_are_met(cli: Cli) -> None:
    met = ["BatchNormalization==0", "batch-norm==0", "size<9", "opset==20", "time<=99"]
    asked = [word for text in met for word in ("--require", text)]
    ran = cli("convert", TINY, *asked, "-o", "out", "--opset", "20", "--json")
    assert ran.status == 0, ran.json
    assert ran.json["timing"]["rounds"] >= 6  # because it was required
    assert ran.json["opset"] == 20
    assert sorted(contents(Path("out"))) == ["tiny.onnx", "tiny.report.json"]


@pytest.mark.parametrize("text", ["Conv==0", "size<=0.0001", "opset<9"])
def test_nothing_is_published_where_the_file_does_not_meet_them(cli: Cli, text: str) -> None:
    ran = cli("convert", TINY, "--require", text, "-o", "out", "--json")
    assert ran.status == 1
    (unmet,) = ran.json["unmet"]
    assert unmet.startswith(f"{text}, found ")
    assert ran.json["timing"] is None
    assert sorted(contents(Path("out"))) == ["tiny.report.json"]


def test_a_requirement_on_a_file_that_is_not_written(cli: Cli) -> None:
    ran = cli("convert", TINY, "--require", "Conv==1", "--export", "pt2")
    assert ran.status == 2
    ran.one_error("`Conv==1` is about an ONNX file, and none is written")
