"""bench of TensorRT engines: what is run and refused; the engines are fakes, since runs need a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normfold.errors import EnvironmentMissing, LoadError, UsageError
from normfold.judge.bench import bench
from normfold.judge.bench_inputs import Inputs
from normfold.judge.pairs import in_tensorrt
from normfold.targets.tensorrt import engine
from normfold.targets.tensorrt.builder import Binding


class Engine:
    """Doubles its input; A calls it `x`, others `images`."""

    ran: list[tuple[str, tuple[int, ...]]]

    def __init__(self, path: str | Path) -> None:
        self.path, self.runtime = Path(path), "tensorrt 11.1.0.1, a GPU"
        self.input = "x" if self.path.name == "a.engine" else "images"
        shape = (-1, 3, 8, 8) if self.path.name != "flat.engine" else (-1, 7)
        self.bindings = (
            Binding(self.input, "input", "float16", shape),
            Binding("y", "output", "float16", shape),
        )

    def prepare(self, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
        x = inputs[self.input]
        assert x.dtype == torch.float16

        def call() -> object:
            self.ran.append((self.path.name, tuple(x.shape)))
            return x * 2

        return call


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three engines; whoever opens one gets a fake."""
    for name in ("a.engine", "b.engine", "flat.engine"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Engine, "ran", [], raising=False)
    monkeypatch.setattr(engine, "Engine", Engine)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return tmp_path


def test_two_engines_on_the_same_inputs(files: Path) -> None:
    a, b = files / "a.engine", files / "b.engine"
    timing = bench(a, b, "trt", batch=4, rounds=6, seconds=0)
    assert (timing.a, timing.b) == (str(a), str(b))
    assert timing.runtime == "tensorrt 11.1.0.1, a GPU"
    assert timing.inputs == "x:4x3x8x8:f16"
    assert set(Engine.ran) == {("a.engine", (4, 3, 8, 8)), ("b.engine", (4, 3, 8, 8))}


def test_waiting_is_for_the_gpu(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    pair = in_tensorrt((files / "a.engine", files / "a.engine"), Inputs(), say=lambda line: None)
    pair.wait()
    assert waited == [True]


def test_engines_that_take_something_else(files: Path) -> None:
    with pytest.raises(UsageError, match="do not take the same inputs"):
        bench(files / "a.engine", files / "flat.engine", "trt")


@pytest.mark.parametrize(
    ("b", "options", "part"),
    [
        ("b.engine", {"provider": "cuda"}, "--provider"),
        ("b.engine", {"device": "cuda"}, "--device"),
        ("b.engine", {"compiled": True}, "--compile"),
        ("b.engine", {"threads": 2}, "--threads"),
        ("b.engine", {"runtime": "ort"}, "--runtime trt"),
        ("b.engine", {"runtime": "torch"}, "--runtime trt"),
        ("b.engine", {"runtime": "tensorrt"}, "`ort`, `torch` or `trt`"),
        ("net.onnx", {}, "--export trt"),
    ],
)
def test_what_makes_no_sense(b: str, options: dict[str, object], part: str, files: Path) -> None:
    wanted = {"runtime": "trt", **options}
    with pytest.raises(UsageError, match=part):
        bench(files / "a.engine", files / b, **wanted)  # type: ignore[arg-type]
    assert Engine.ran == []


def test_an_engine_that_is_not_there(files: Path) -> None:
    with pytest.raises(LoadError, match=r"(?s)no such file.*none\.engine"):
        bench(files / "a.engine", files / "none.engine", "trt")


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.targets.tensorrt.sidecar import Sidecar

    path = tmp_path / "a.engine"
    path.touch()
    Sidecar.path_of(path).write_text(Sidecar(builder="tensorrt-rtx").to_json())
    monkeypatch.setattr(engine, "probe", lambda: "no NVIDIA driver")
    with pytest.raises(EnvironmentMissing, match=r"(?s)run on a GPU.*no NVIDIA driver"):
        bench(path, path, "trt")
