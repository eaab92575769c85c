"""Built engines, opened again: what is compared, what is refused, and on a GPU that they run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from normfold.errors import EnvironmentMissing, UsageError
from normfold.job import EngineOptions
from normfold.targets.tensorrt import Backend, Gpu, build, probe
from normfold.targets.tensorrt.builder import Binding
from normfold.targets.tensorrt.engine import Engine, _layer_type, compare
from normfold.targets.tensorrt.sidecar import Sidecar
from tests.targets.tensorrt.conftest import NO_GPU, Machine
from tests.targets.tensorrt.fakes import ADA, relu

X, Y = Binding("x", "input", "float16", (-1, 4)), Binding("y", "output", "float32", (-1, 2))


def test_what_was_asked_for() -> None:
    assert compare([X, Y], [Y, X]) == []


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([X], ["no output `y`"]),
        ([X, Y, Binding("z", "output", "float32", ())], ["an output `z` too many"]),
        (
            [Binding("x", "input", "float32", (-1, 4)), Y],
            ["`x` has dtype float32, not float16"],
        ),
        ([X, Binding("y", "output", "float32", (8, 2))], ["`y` has shape (8, 2), not (-1, 2)"]),
        (
            [Binding("x", "output", "int64", (-1, 4)), Y],
            ["`x` has kind output, not input", "`x` has dtype int64, not float16"],
        ),
    ],
)
def test_what_was_not(found: list[Binding], wrong: list[str]) -> None:
    assert compare([X, Y], found) == wrong


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Row major linear FP16 format (kLINEAR)", "float16"),
        ("Half", "float16"),
        ("Float", "float32"),
        ("Channel major BF16 format", "bfloat16"),
        ("Int64", "int64"),
        ("", "unknown"),
    ],
)
def test_types_of_the_inspector(text: str, name: str) -> None:
    assert _layer_type(text) == name


@pytest.fixture
def engine(tmp_path: Path, rtx: Backend) -> Path:
    """ReLU on (batch,4), for this GPU if there is one."""
    built = build(relu(tmp_path / "n.onnx", "n"), rtx, None, {"x": ((1, 4), (2, 4), (8, 4))})
    path = tmp_path / "net.engine"
    path.write_bytes(built.plan)
    sidecar = Sidecar(
        builder=rtx.name,
        version=rtx.version,
        targets=rtx.targets(EngineOptions()),
        sha256=built.sha256,
        bindings=tuple(asdict(item) for item in built.bindings),
        profile={"x": ((1, 4), (2, 4), (8, 4))},
    )
    Sidecar.path_of(path).write_text(sidecar.to_json())
    return path


def test_without_a_gpu(engine: Path, machine: Machine) -> None:
    with pytest.raises(EnvironmentMissing, match=rf"(?s)run on a GPU.*{NO_GPU}"):
        Engine(engine)


def test_what_does_not_fit_is_refused_before_it_is_opened(engine: Path, machine: Machine) -> None:
    machine(Gpu("an older GPU", "sm70"))
    with pytest.raises(UsageError, match="this GPU is sm70"):
        Engine(engine)
    machine(ADA)
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not the one that its sidecar describes"):
        Engine(engine)
    Sidecar.path_of(engine).unlink()
    with pytest.raises(UsageError, match="no readable sidecar"):
        Engine(engine)


def test_on_a_gpu(engine: Path) -> None:
    device = probe()
    if not isinstance(device, Gpu) or not Sidecar.read(engine).fits(device.arch):
        pytest.skip(f"no GPU that this engine is for: {device}")
    if not torch.cuda.is_available():
        pytest.skip("torch is a build without CUDA")
    opened = Engine(engine)
    assert compare([Binding(**item) for item in opened.sidecar.bindings], opened.bindings) == []
    assert sum(opened.layers().values()) >= 1
    for batch in (1, 2, 8):
        x = torch.randn(batch, 4)
        assert torch.equal(opened.run([x])[0], x.relu())
        assert torch.equal(opened.run({"x": x})[0], x.relu())
    opened.prepare([torch.randn(2, 4)])()
    torch.cuda.synchronize()
    with pytest.raises(UsageError, match=r"(?s)9x4.*1x4 to 8x4"):
        opened.run([torch.randn(9, 4)])
