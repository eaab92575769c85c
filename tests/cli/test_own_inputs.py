"""`--inputs`: what a file or a function gives is judged by every command, under the name `sample 0`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import normfold
from normfold.job import Source
from normfold.judge.inputs import own_samples
from tests.cli.conftest import TINY, Cli
from tests.cli.nets import tiny
from tests.judge.nets import small


@pytest.fixture
def bright() -> str:
    """Images far from zero, in a file."""
    np.savez("bright.npz", x=np.full((2, 3, 8, 8), 200.0, np.float32))
    return "bright.npz"


def judged(report: Any) -> dict[str, set[str]]:
    """The inputs of every line of a report, by its kind."""
    checks = [*report["checks"], *(item["check"] for item in report["passes"] if item["check"])]
    return {check["kind"]: {item["inputs"] for item in check["outputs"]} for check in checks}


def test_convert_judges_them_in_every_line(cli: Cli, bright: str) -> None:
    ran = cli("convert", TINY, "--inputs", bright, "--json")
    assert ran.status == 0
    lines = judged(ran.json)
    assert {"capture", "onnxruntime-all"} < set(lines)
    assert all("sample 0" in lines[kind] for kind in ("capture", "onnxruntime-all"))


def test_half_precision_and_its_range_are_of_them(cli: Cli) -> None:
    """1e30 is far outside the range of float16, and no generated input is: what it passes stays in float32."""
    np.savez("huge.npz", x=np.full((2, 3, 8, 8), 1e30, np.float32))
    plain = cli("convert", TINY, "--precision", "fp16", "-o", "plain", "--json").json
    assert plain["ranges"][0]["islands"] == []
    ran = cli("convert", TINY, "--precision", "fp16", "--inputs", "huge.npz", "--json")
    assert ran.status == 0
    assert "sample 0" in judged(ran.json)["float16"]
    assert "conv2d" in {item["op"] for item in ran.json["ranges"][0]["islands"]}


def test_verify_and_bisect_judge_a_file_on_them(cli: Cli, bright: str) -> None:
    """A file that clips what is larger than any generated input makes."""
    assert cli("convert", TINY, "--verify", "off").status == 0
    model = onnx.load("out/tiny.onnx")
    name, limit = (
        model.graph.input[0].name,
        onnx.numpy_helper.from_array(np.array(190, "f"), "limit"),
    )
    model.graph.initializer.append(limit)
    for node in model.graph.node:
        node.input[:] = ["clipped" if item == name else item for item in node.input]
    # of the rows times 100 some numbers are larger, so clip where the smallest is
    nodes = [
        onnx.helper.make_node("ReduceMin", [name], ["least"], keepdims=1),
        onnx.helper.make_node("Less", ["least", "limit"], ["dark"]),
        onnx.helper.make_node("Min", [name, "limit"], ["low"]),
        onnx.helper.make_node("Where", ["dark", name, "low"], ["clipped"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, "clips.onnx")
    for command in ("verify", "bisect"):
        assert cli(command, TINY, "clips.onnx").status == 0
        ran = cli(command, TINY, "clips.onnx", "--inputs", bright)
        assert ran.status == 1
        assert "sample 0" in ran.out


def test_what_a_function_gives_is_judged_too(cli: Cli) -> None:
    Path("own_images.py").write_text(
        "import torch\ndef one():\n    return torch.ones(2, 3, 8, 8)\n"
    )
    ran = cli("convert", TINY, "--inputs", "own_images:one", "--json")
    assert "sample 0" in judged(ran.json)["onnxruntime-all"]


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({}, False),
        ({"inputs": ("2x3x8x8",)}, False),
        ({"inputs": (torch.ones(2, 3, 8, 8),)}, True),
        ({"inputs": (torch.ones(2, 3, 8, 8, dtype=torch.float64),)}, True),
        ({"inputs_from": "file.npz"}, True),
        ({"inputs": (torch.ones(2, 3, 8, 8),), "part": "conv"}, True),
        ({"inputs": (torch.ones(2), torch.ones(2))}, True),
    ],
)
def test_whose_inputs_they_are(given: dict[str, Any], own: bool) -> None:
    graph = normfold.capture(tiny(), (torch.zeros(2, 3, 8, 8),))
    samples = own_samples(graph, Source.of({"model": small(), **given}))
    assert (samples is not None) == own
    if samples is not None:
        ((x,),) = samples
        assert (x.shape, x.dtype) == ((2, 3, 8, 8), torch.float32)
        fits = "part" not in given and len(given.get("inputs", ())) == 1
        assert bool(x.any()) == fits, "a part, or other inputs: what was captured stands for them"
    captured = own_samples(graph, Source.of({"model": graph, **given}))
    assert (captured is not None) == (len(given.get("inputs", ())) == 1 and own)
