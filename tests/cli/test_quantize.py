"""`normfold quantize` and `convert --quantize`: what is written, what is refused, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from tests.cli.conftest import ROOT

SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())
RESIDUAL = ["tests.ranges.nets:made_residual", "--input", "2x3x12x10"]
ATTENTION = ["tests.ranges.nets:made_attention", "--input", "2x3x16x16"]
SPEAKER = ["tests.ranges.nets:made_speaker", "--input", "2x6:i64"]
QUICK = ["--images", "16", "--synthesis-steps", "5"]


def report_of(folder: Path) -> Any:
    (path,) = folder.glob("*.report.json")
    report = json.loads(path.read_text())
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)
    return report


def types(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_without_any_data(cli: Any, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images.npz"
    ran = cli("quantize", *RESIDUAL, *QUICK, "--save-synthetic", str(images), "-o", str(out))
    assert ran.status == 0, ran.err
    (made,) = report_of(out)["quantization"]
    assert made["integer"] == {"Conv": 3, "Gemm": 1, "Add": 1, "GlobalAveragePool": 1}
    assert made["floats"] == made["blocked"] == {}
    checks = [c for c in report_of(out)["checks"] if "snr_db" in c]
    assert [c["kind"] for c in checks] == ["onnxruntime-all", "onnxruntime-none"]
    assert all(c["ok"] and c["agreement"] >= 0.97 for c in checks)
    assert "within the budget" in ran.out.splitlines()[-1]
    assert made["evidence"]["loss"] < made["evidence"]["noise"]
    (saved,) = np.load(images).values()
    assert saved.shape == (16, 3, 12, 10)
    assert "onnxruntime runs in integers: Conv 3 of 3" in ran.out
    assert (out / "made_residual.statistics.safetensors").is_file()


def test_pixels_stay_in_the_range_of_the_input(cli: Any, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images.npz"
    network = [RESIDUAL[0], "--input", "2x3x12x10[-0.5..0.25]"]
    ran = cli("quantize", *network, *QUICK, "--save-synthetic", str(images), "-o", str(out))
    assert ran.status == 0, ran.err
    (saved,) = np.load(images).values()
    assert (saved.min(), saved.max()) == (-0.5, 0.25)


def test_as_a_step_of_convert(cli: Any, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(
        samples, inputs=np.random.default_rng(0).normal(size=(32, 3, 12, 10)).astype("float32")
    )
    ran = cli(
        "convert",
        *RESIDUAL,
        "--quantize",
        "int8",
        "--data",
        str(samples),
        "-o",
        str(tmp_path / "out"),
    )
    assert ran.status == 0, ran.err
    (made,) = report_of(tmp_path / "out")["quantization"]
    assert "32 samples" in made["evidence"]["source"]
    assert made["integer"]["Conv"] == 3


def test_statistics_survive_folding(cli: Any, tmp_path: Path) -> None:
    """Folded, written, read again, then quantised: as quantised at once."""
    direct, folded, later = (tmp_path / name for name in ("direct", "folded", "later"))
    assert cli("quantize", *RESIDUAL, *QUICK, "-o", str(direct)).status == 0
    assert cli("convert", *RESIDUAL, "--export", "pt2", "-o", str(folded)).status == 0
    ran = cli("quantize", str(folded / "made_residual.pt2"), *QUICK, "-o", str(later))
    assert ran.status == 0, ran.err
    one, other = (report_of(folder)["quantization"][0] for folder in (direct, later))
    assert other["evidence"]["loss"] == pytest.approx(one["evidence"]["loss"], rel=1e-3)
    assert other["activations"] == one["activations"]
    assert "statistics of" in " ".join(report_of(later)["notes"])


def test_nothing_to_go_on(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = cli("quantize", "tests.ranges.nets:plain", "--input", "2x3x8x8", "-o", str(out))
    assert ran.status == 2
    assert "nothing is known of the activations" in ran.err
    assert "int8-weights" in ran.err
    assert not list(out.glob("*.onnx"))


def test_patches(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *ATTENTION, *QUICK, "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    (made,) = report_of(tmp_path)["quantization"]
    assert made["evidence"]["source"].startswith("synthesised patches: 16 images")
    assert made["integer"]["MatMul"] >= 2


@pytest.mark.parametrize(
    ("scheme", "op"),
    [
        ("int8", "QuantizeLinear"),
        ("int8-dynamic", "DynamicQuantizeLinear"),
        ("int8-weights", "DequantizeLinear"),
        ("int4-weights", "DequantizeLinear"),
    ],
)
def test_tokens(scheme: str, op: str, cli: Any, tmp_path: Path) -> None:
    loose = ["--max-drop", "20"] if "int4" in scheme else []  # untrained: near ties
    ran = cli("quantize", *SPEAKER, "--scheme", scheme, *loose, "-o", str(tmp_path))
    assert ran.status == 0, ran.out
    (made,) = report_of(tmp_path)["quantization"]
    assert made["evidence"]["source"] == "text of the network's own: 64 prompts"
    assert made["integer"]["MatMul"] == 3
    assert op in types(tmp_path / "made_speaker.onnx")


def test_weights_without_a_kernel_are_named(cli: Any, tmp_path: Path) -> None:
    """A recurrent layer's, which are most of this network."""
    network = ["tests.cli.nets:recurrent", "--input", "1x10x64", "--scheme", "int8-dynamic"]
    ran = cli("quantize", *network, "-o", str(tmp_path))
    assert ran.status == 0, ran.out
    (made,) = report_of(tmp_path)["quantization"]
    assert made["warnings"] == ["88% of the weights stay in floats: lstm 0.13 MB"]


def test_weights_that_are_on_a_grid_are_stored_as_they_are(cli: Any, tmp_path: Path) -> None:
    ternary = ["tests.passes.known:made_transformer", "--input", "2x6x256"]
    ran = cli(
        *["quantize", *ternary, "--scheme", "lossless", "--require", "keep-grids>=7"],
        *["-o", str(tmp_path)],
    )
    assert ran.status == 0, ran.err
    report = report_of(tmp_path)
    (made,) = report["quantization"]
    assert (made["weights"], made["activations"]) == (7, 0)
    assert made["integer"] == {"MatMul": 7}
    assert {check["kind"] for check in report["checks"]} >= {"onnxruntime-all", "onnxruntime-none"}
    assert "equivalent in onnxruntime" in ran.out.splitlines()[-1]
    assert "reads weights in integers and computes in floats: MatMulNBits 7" in ran.out
    (file,) = report["artefacts"]
    assert file["size"] < 0.09 * report["parameters_before"]


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--weights", "keep-grids{least=4}"], 0, "4 bits, a scale for 256 inputs"),
        (["--target", "openvino"], 0, "equivalent in OpenVINO"),
        (["--weights", "quantize-weights"], 2, "`quantize-weights` rounds"),
        (["--require", "keep-grids>=9"], 1, "keep-grids>=9, found 3"),
    ],
)
def test_what_lossless_takes(
    options: list[str], status: int, text: str, cli: Any, tmp_path: Path
) -> None:
    if "openvino" in options:
        pytest.importorskip("openvino")
    net = ["tests.passes.known:made_mlp", "--input", "3x256"]
    ran = cli("quantize", *net, "--scheme", "lossless", *options, "-o", str(tmp_path))
    assert ran.status == status, ran.err
    written = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert text in ran.out + ran.err + written


def test_nothing_that_is_on_a_grid(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *RESIDUAL, "--scheme", "lossless", "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    assert "keep-grids changed nothing: it declined NF131 (4)" in ran.out
    assert not {"DequantizeLinear", "MatMulNBits"} & types(tmp_path / "made_residual.onnx")


def test_rotated_and_migrated(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *SPEAKER, "--rotate", "--migrate", "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    report = report_of(tmp_path)
    names = [item.partition("{")[0] for item in report["pipeline"].split(",")]
    assert names == [
        *["canonicalize", "fold-affine", "center-stream", "rotate-stream", "restore", "bake"],
        *["migrate-scale", "restore", "bake", "quantize-tables", "quantize-weights"],
        *["quantize-activations", "correct-bias", "bake"],
    ]
    assert [item["spec"] for item in report["passes"]] == report["pipeline"].split(",")


def test_a_target_of_size(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *SPEAKER, "--target-size", "0.7", "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    mixed = report_of(tmp_path)["quantization"][0]["mixed"]
    assert set(mixed["bits"].values()) <= {4, 8, 32}
    assert mixed["cost"] <= mixed["budget"] == pytest.approx(0.7 * (2 * 32 * 64 + 2 * 32 * 40))
    assert "foretold" in ran.out


def test_a_target_that_is_too_small(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *SPEAKER, "--target-size", "0.2", "-o", str(tmp_path))
    assert ran.status == 2
    assert "does not fit into" in ran.err
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_a_target_of_latency(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *RESIDUAL, *QUICK, "--target-latency", "1000", "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    mixed = report_of(tmp_path)["quantization"][0]["mixed"]
    assert mixed["unit"] == "ms"
    assert 0 < mixed["cost"] < 1000
    assert set(mixed["bits"].values()) == {32}  # everything is allowed, and floats do no harm


def test_a_limit_on_the_loss(cli: Any, tmp_path: Path) -> None:
    harsh = ["--weights", "quantize-weights{bits=2}", "--max-drop", "0"]
    ran = cli("quantize", *RESIDUAL, *QUICK, *harsh, "-o", str(tmp_path))
    assert ran.status == 1
    assert ran.out.splitlines()[-1].startswith("NOT written: quantising loses ")
    assert not list(tmp_path.glob("*.onnx"))


def test_simulated_bits(cli: Any, tmp_path: Path) -> None:
    few = ["--simulate", "--target-size", "0.6", "--activation-bits", "6"]
    ran = cli("quantize", *RESIDUAL, *QUICK, *few, "-o", str(tmp_path), "--json")
    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    (made,) = report["quantization"]
    assert set(made["mixed"]["bits"].values()) <= {2, 4, 8}
    assert report["artefacts"] == []
    ran = cli("quantize", *RESIDUAL, *few, "--export", "onnx", "-o", str(tmp_path))
    assert ran.status == 2
    assert "simulated" in ran.err


def test_what_tensorrt_does_not_take(cli: Any, tmp_path: Path) -> None:
    ran = cli(
        "quantize", *SPEAKER, "--scheme", "int4-weights", "--target", "trt", "-o", str(tmp_path)
    )
    assert ran.status == 2
    assert "TensorRT takes `int8`" in ran.err


def test_a_device_that_is_not_there(cli: Any, tmp_path: Path) -> None:
    ran = cli("quantize", *SPEAKER, "--device", "tpu", "-o", str(tmp_path))
    assert ran.status == 2
    assert "no device `tpu`" in ran.err


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_the_file_for_tensorrt(target: str, cli: Any, tmp_path: Path) -> None:
    """No uint8, no integer bias, no zero point but 0."""
    ran = cli("quantize", *RESIDUAL, *QUICK, "--target", target, "-o", str(tmp_path))
    assert ran.status == 0, ran.err
    graph = onnx.load(tmp_path / "made_residual.onnx").graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    assert "uint8" not in {str(value.dtype) for value in stored.values()}
    grids = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(grids) >= 6
    for node in grids:
        if len(node.input) > 2 and node.input[2]:
            assert not stored[node.input[2]].any()
        if node.input[0] in stored:
            assert stored[node.input[0]].dtype != np.int32
