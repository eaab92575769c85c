"""A job is the same however it is asked for, writes itself back, and refuses what means nothing in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import normfold
from normfold.conversion import Result
from normfold.errors import UsageError
from normfold.job import COMMANDS, Job, Option, all_options
from normfold.report import Report
from tests.cli.conftest import Cli, cli  # noqa: F401

OPTIONS = {item.keyword: item for item in all_options()}
# what an option needs beside it to mean something
BESIDE: dict[str, dict[str, Any]] = {
    "training": {"to": "prepbn", "data": "s.npz"},
    "samples": {"quantize": "int8"},
    "bytes": {"uint8_input": True},
    "recalibration": {"recalibrate": "adabn", "data": "s.npz"},
    "recalibration-alpha": {"recalibrate": "alpha", "data": "s.npz"},
    "recalibration-prior": {"recalibrate": "prior", "data": "s.npz"},
    "data": {"quantize": "int8", "data": "s.npz"},
    "samples-given": {"quantize": "int8", "data": "s.npz"},
    "half": {"precision": "fp16"},
    "integers": {"quantize": "int8"},
    "weights": {"quantize": "int8"},
    "int8": {"quantize": "int8"},
    "synthesis": {"quantize": "int8"},
    "evidence": {"quantize": "int8"},
    "approximate": {"quantize": "int8"},
    "engine": {"export": ("trt",)},
}
# values where the first one that comes to mind is refused by something else
VALUES: dict[str, Any] = {
    "mean": "0.5,0.25",
    "std": "0.25",
    "source_weight": 0.25,
    "to": "rmsnorm",
    "passes": "canonicalize,bake",
    "export": ("pt2",),
    "target": ("openvino",),
    "activation_bits": 4,
    "gpu_arch": ("sm89",),
    "hold_out": 0.25,
    "transition": 0.25,
    "require": ("bake>=1",),
    "dynamic": ("x:1",),
    "device": "cpu",
    "pixels": (0.0, 2.5),
    "effort": 2,
}


def value_of(item: Option) -> Any:
    """Another value than the default."""
    if item.keyword in VALUES:
        return VALUES[item.keyword]
    if item.choices:
        return next(choice for choice in item.choices if choice != item.default)
    if item.kind == "bool":
        return not item.default
    one: Any = {"int": 7, "float": 2.5, "path": Path("some/where")}.get(item.kind, "text")
    if item.count > 1:
        return (one,) * item.count
    return (one,) if item.many else one


def given(name: str) -> dict[str, Any]:
    item = OPTIONS[name]
    beside = {"data": "s.npz"} if name == "recalibrate" else BESIDE.get(item.when or "", {})
    return {**beside, name: value_of(item)}


def flags(options: dict[str, Any]) -> list[str]:
    """The options on a command line."""
    found: list[str] = []
    for name, value in options.items():
        item = OPTIONS[name]
        flag = item.flags[0]
        if item.kind == "bool":
            found.append(flag if value else f"--no-{item.key}")
        elif item.count > 1:
            found += [flag, *map(str, value)]
        else:
            for one in value if item.many else (value,):
                found += [flag, str(one)]
    return found


def toml(options: dict[str, Any]) -> str:
    lines = []
    for name, value in options.items():
        plain = [str(x) for x in value] if isinstance(value, tuple) else value
        text = str(plain).lower() if isinstance(plain, bool) else repr(plain)
        lines.append(f"{OPTIONS[name].key} = {str(text).replace('PosixPath', '').strip('()')}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def asked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:  # noqa: F811
    """The job that a command line asks for."""
    seen: list[Job] = []

    def execute(job: Job, say: Any) -> Result:
        seen.append(job)
        return Result(None, Report(), [])  # type: ignore[arg-type]

    monkeypatch.setattr(normfold, "execute", execute)

    def run(*arguments: str, command: str = "convert") -> Job:
        ran = cli(command, "net.pt", *arguments)
        assert ran.status == 0, ran.err
        return seen[-1]

    return run


@pytest.mark.parametrize("name", OPTIONS)
def test_four_ways_to_ask_for_an_option(
    name: str, asked: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Command line, normfold.toml, environment and Python, and what the job writes of itself."""
    options = given(name)
    job = Job.of({"model": "net.pt", **options})
    assert job != Job.of({"model": "net.pt", **BESIDE.get(OPTIONS[name].when or "", {})})
    assert asked(*flags(options)) == job
    if name != "trust_pickle":  # a file or a variable must not lift the gate
        Path("mine.toml").write_text(toml(options))
        assert asked("--config", "mine.toml") == job
    for other, value in options.items():
        item = OPTIONS[other]
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        variable = f"NORMFOLD_CONVERT_{item.key}".upper().replace("-", "_")
        monkeypatch.setenv(variable, text)
    assert asked() == job
    found: list[Job] = []
    monkeypatch.setattr("normfold.generated.execute", lambda job, say: found.append(job))
    normfold.convert("net.pt", **options)
    assert found == [job]
    assert Job.from_toml(job.to_toml()) == job


@pytest.mark.parametrize(
    "name", [name for name, item in OPTIONS.items() if (item.when or "always") != "always"]
)
def test_an_option_that_means_nothing_is_refused(name: str) -> None:
    item = OPTIONS[name]
    alone: dict[str, Any] = (
        {"export": ()} if item.when in ("judged", "onnx-file", "onnxruntime") else {}
    )
    if item.when == "samples":
        alone = {"inputs": ("x:1x3x8x8",)}
    if item.when == "judges":
        alone = {"verify": "off"}
    if item.when == "generation":
        alone = {"data": "samples.npz"}
    with pytest.raises(UsageError, match=f"`{item.flags[0]}`: "):
        Job.of({"model": "net.pt", **alone, name: value_of(item)})


def test_an_option_is_declared_once() -> None:
    names = [item.keyword for item in all_options()]
    spelled = [flag for item in all_options() for flag in item.flags]
    assert len(set(names)) == len(names)
    assert len(set(spelled)) == len(spelled)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_presets_of_one_job(command: str, asked: Callable[..., Job]) -> None:
    beside = ["--data", "s.npz"] if command == "distill" else []
    job = asked(*beside, command=command)
    expected = {"convert": (), "distill": ("Train",), "quantize": ("Quantize",)}[command]
    kinds = [type(step).__name__ for step in job.steps]
    assert set(kinds) == {"Rewrite", *expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16", "quantize": "int8"}, "contradict each other"),
        ({"quantize": "fp8"}, "`fp8` is for `--target trt`, `--target trt-rtx`"),
        ({"quantize": "fp8", "target": "trt", "vnni": False}, "`--quantize int8`"),
        ({"to": "prepbn"}, "the network must learn from its original"),
        ({"to": "folder"}, r"unknown preset `folder`[\s\S]*did you mean `folded`"),
        ({"target": "ort-x68"}, "did you mean `ort-x86`"),
        ({"target": "openvino", "export": "trt"}, "`openvino` takes none of the formats"),
        ({"quantize": "int8", "export": "pt2"}, "integers are not written as pt2"),
        ({"quantize": "int4-weights", "target": "trt"}, "TensorRT takes `int8`"),
        ({"quantize": "lossless", "target": "trt"}, "TensorRT takes `int8`"),
        ({"quantize": "lossless", "max_drop": 1.0}, "this conversion is exact"),
        ({"quantize": "lossless", "target_size": 0.5}, "nothing is quantised"),
        ({"quantize": "lossless", "precision": "fp16"}, "contradict each other"),
        ({"quantize": "int8-dynamic", "target": "openvino"}, "is not for OpenVINO"),
        ({"quantize": "int8", "target_size": 0.5, "export": "trt"}, "formats by layer"),
        ({"quantize": "int8", "activation_bits": 4, "export": "onnx"}, "no runtime executes"),
        ({"seed": -1}, "`--seed` takes a number from 0"),
        ({"batch": "dynamics"}, "did you mean `dynamic`"),
        ({"opset": "20"}, "`--opset` takes a whole number"),
        ({"output": 3}, "`--output` takes a path"),
        ({"to": torch.zeros(9, 9)}, r"`--to` takes a text\s+found: tensor.{,40}$"),
        ({"sed": 1}, r"no option `sed`[\s\S]*did you mean `seed`"),
        ({"to": "rmsnorm", "passes": "bake"}, "`--to` and `--passes` contradict"),
        (
            {"quantize": "int8", "target_size": 0.5, "target_latency": 3.0},
            "`--target-size` and `--target-latency` contradict",
        ),
        (
            {"quantize": "int8", "weights": "quantize-weights", "simulate": True},
            "`--weights` and `--simulate` contradict",
        ),
        ({"quantize": "int8-weights", "vnni": False}, "`--quantize int8`"),
        ({"quantize": "int8-weights", "correct_bias": False}, "does that unasked"),
        ({"to": "folded", "keep_if_faster": False}, "`--no-keep-if-faster`: only"),
        ({"passes": (), "rotate": True}, "pass objects are run as they are"),
        ({"keep_fp32": ["a"], "precision": "fp32"}, "nothing is in half precision"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Job.of({"model": "net.pt", **options})


def test_8_bit_floats_stand_beside_half_precision() -> None:
    """And the job says so, so that it can be done again."""
    job = Job.of({"model": "net.pt", "quantize": "fp8", "target": ("trt",)})
    assert job.cast is not None
    assert job.cast.precision == "fp16"
    assert Job.from_toml(job.to_toml()) == job
    wide = Job.of({"model": "net.pt", "quantize": "fp8", "target": ("trt",), "precision": "fp32"})
    assert wide.cast is not None
    assert wide.cast.precision == "fp32"


def test_a_job_in_python_may_hold_what_toml_cannot() -> None:
    job = Job.of({"model": object(), "quantize": "int8", "data": ([1.0], [2.0])})
    text = job.to_toml()
    assert "# network: a object, given in Python" in text
    assert 'quantize = "int8"' in text
    assert Job.from_toml(text).quantize is not None


def test_rotation_goes_with_rmsnorm_unless_said_otherwise() -> None:
    rotated = Job.of({"rotate": True, "quantize": "int8"}).rewrite
    assert rotated is not None
    assert rotated.pipeline.endswith("center-stream,rotate-stream,restore,bake")
    folded = Job.of({"rotate": True, "to": "folded"}).rewrite
    assert folded is not None
    assert folded.pipeline == "canonicalize,fold-affine,rotate-stream,restore,bake"


def test_the_typed_form_is_up_to_date() -> None:
    """`python -m tests.signature` writes it."""
    from tests.signature import TARGET, text

    assert text() == TARGET.read_text()
