"""convert: every form of MODEL that is shipped or quick to make, and what a failing verdict leaves."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import Tensor

import normfold
from normfold.targets import RuntimeSession, census
from tests.cli.conftest import ROOT, TINY, Cli, contents
from tests.cli.nets import tiny

SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())


def checked_report(path: Path) -> dict[str, object]:
    """A report file that follows the schema."""
    data: dict[str, object] = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)
    return data


def test_the_shipped_resnet(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    model = "examples/models/resnet20.pt"
    ran = cli("convert", model, "--trust-module", "examples", "--export", "onnx", "-o", out)
    assert ran.status == 0, ran.err
    assert ran.err == ""
    last = ran.out.splitlines()[-1]
    assert last.startswith(f"wrote {out / 'resnet20.onnx'}: equivalent in onnxruntime ")
    assert sorted(contents(out)) == ["resnet20.onnx", "resnet20.report.json"]
    counted = census(out / "resnet20.onnx")
    assert counted.batch_norms == 0
    assert counted.per_channel == ()
    assert counted.ops["Conv"] == 21
    report = checked_report(out / "resnet20.report.json")
    assert report["ok"] is True
    assert report["counts"] == {"batch-norm": {"gone": 21}}
    made = report["artefacts"][0]  # type: ignore[index]
    assert made["path"] == str(out / "resnet20.onnx")
    assert made["size"] == (out / "resnet20.onnx").stat().st_size
    assert made["verdict"]["state"] == "pass"
    assert normfold.Job.from_toml(str(report["job"])).source.model == model
    kinds = [check["kind"] for check in report["checks"]]  # type: ignore[attr-defined]
    assert kinds == ["capture", "onnxruntime-all", "onnxruntime-none"]


def test_the_shipped_state_dict(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = "examples/models/vit_shapes.safetensors"
    factory = "examples.nets:vit_tiny_shapes"
    ran = cli("convert", model, "--model", factory, "-o", tmp_path / "out", "--json")
    assert ran.status == 0, ran.err
    jsonschema.validate(ran.json, SCHEMA, jsonschema.Draft202012Validator)
    assert ran.json == checked_report(tmp_path / "out" / "vit_shapes.report.json")
    counted = census(tmp_path / "out" / "vit_shapes.onnx")
    assert counted.batch_norms == 0
    assert ran.json["counts"]["batch-norm"] == {"gone": len(batch_norms(factory))}


def batch_norms(factory: str) -> list[str]:
    from examples import nets

    module = getattr(nets, factory.split(":")[1])()
    return [n for n, part in module.named_modules() if "BatchNorm" in type(part).__name__]


def test_a_factory_and_the_file_that_it_makes(cli: Cli) -> None:
    """The file computes what the network computes, at another batch size too."""
    ran = cli("convert", TINY, "-o", "out", "--verify", "off")
    assert ran.status == 0, ran.err
    assert "not judged: --verify off" in ran.out.splitlines()[-1]
    x = torch.randn(5, 3, 8, 8)
    (got,) = RuntimeSession("out/tiny.onnx").run([x])
    torch.testing.assert_close(got, tiny()(x).detach())
    assert checked_report(Path("out/tiny.report.json"))["checks"] == []


def test_a_program_in_and_a_program_out(cli: Cli) -> None:
    program = torch.export.export(tiny(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, "net.pt2")
    before = Path("net.pt2").read_bytes()
    ran = cli("convert", "net.pt2", "--export", "pt2", "--export", "onnx", "-o", "out")
    assert ran.status == 0, ran.err
    assert sorted(contents(Path("out"))) == [
        "net.onnx",
        "net.pt2",
        "net.report.json",
        "net.statistics.safetensors",
    ]
    assert Path("net.pt2").read_bytes() == before
    x = torch.randn(2, 3, 8, 8)
    module = torch.export.load("out/net.pt2").module()
    torch.testing.assert_close(module(x), tiny()(x))
    assert not any("batch_norm" in str(node.target) for node in module.graph.nodes)


def test_a_failing_verdict_writes_the_report_and_no_artefact(cli: Cli, broken: str) -> None:
    out = Path("out")
    assert cli("convert", TINY, "-o", out, "--verify", "off").status == 0
    old = (out / "tiny.onnx").read_bytes()
    ran = cli("convert", TINY, "-o", out, "--passes", broken)
    assert ran.status == 1
    assert ran.err == ""
    assert ran.out.splitlines()[-1].startswith("NOT written: certificate: ")
    assert "wrote" not in ran.out
    assert (out / "tiny.onnx").read_bytes() == old
    report = checked_report(out / "tiny.report.json")
    assert report["ok"] is False
    assert report["artefacts"] == []
    assert report["exit_code"] == 1
    assert report["pipeline"] == broken
    assert report["census"] == {}  # nothing was exported either
    assert sorted(contents(out)) == ["tiny.onnx", "tiny.report.json"]


def test_a_file_that_the_runtime_finds_wrong_is_not_published(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RuntimeSession.run

    def wrong(self: RuntimeSession, inputs: list[Tensor]) -> list[Tensor]:
        return [output * 1.01 for output in run(self, inputs)]

    monkeypatch.setattr(RuntimeSession, "run", wrong)
    ran = cli("convert", TINY, "-o", "out", "--json")
    assert ran.status == 1
    failing = [check["kind"] for check in ran.json["checks"] if not check["ok"]]
    assert failing == ["onnxruntime-all", "onnxruntime-none"]
    assert sorted(contents(Path("out"))) == ["tiny.report.json"]


def test_a_pipeline_that_does_not_bake_is_baked_and_judged(cli: Cli) -> None:
    ran = cli(
        "convert", TINY, "-p", "canonicalize,fold-affine,restore", "--export", "pt2", "--json"
    )
    assert ran.status == 0, ran.err
    assert [check["kind"] for check in ran.json["checks"]] == ["capture", "rounding", "pt2"]
    assert any("does not bake" in note for note in ran.json["notes"])


def test_the_name_and_version(cli: Cli) -> None:
    ran = cli("--version")
    assert (ran.status, ran.out) == (0, f"normfold {normfold.__version__}\n")
