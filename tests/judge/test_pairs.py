"""The two sides of a bench: inputs that both take, onnxruntime and torch, refusals. Nothing is timed."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import normfold
import normfold.judge.bench as bench_module
from normfold.errors import EnvironmentMissing, LoadError, NormfoldError, UsageError
from normfold.ir import Graph
from normfold.judge.bench import bench
from normfold.judge.bench_inputs import Inputs, merged, values_for
from normfold.judge.pairs import Pair
from normfold.report import Timing
from normfold.targets import RuntimeSession, census
from normfold.targets.feeds import Signature
from tests.cli.nets import Tiny, stuck, tiny
from tests.nets import perturb
from tests.timings import timing

NETS = "tests.cli.nets"
IMAGES: Signature = [("x", ("batch", 3, 8, 8), "tensor(float)")]
TOKENS: Signature = [
    ("input_ids", ("batch", "sequence"), "tensor(int64)"),
    ("attention_mask", ("batch", "sequence"), "tensor(int64)"),
]


def test_values_are_what_the_files_take() -> None:
    (x,) = values_for(IMAGES, Inputs(batch=5))
    assert (x.shape, x.dtype) == ((5, 3, 8, 8), torch.float32)
    (again,) = values_for(IMAGES, Inputs(batch=5))
    (other,) = values_for(IMAGES, Inputs(batch=5, seed=1))
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    ids, mask = values_for(TOKENS, Inputs(("input_ids:2x7", "attention_mask:2x7:i64")))
    assert (ids.shape, ids.dtype, mask.dtype) == ((2, 7), torch.int64, torch.int64)
    assert set(ids.flatten().tolist()) == {0, 1}  # every vocabulary has these
    assert mask.min() == 1
    flags, half = values_for(
        [("flags", (4,), "tensor(bool)"), ("h", (2,), "tensor(float16)")], Inputs()
    )
    assert (flags.dtype, half.dtype) == (torch.bool, torch.float16)
    (scalar,) = values_for([("s", (), "tensor(float)")], Inputs())
    assert scalar.shape == ()


def test_a_batch_on_another_axis_is_the_batch() -> None:
    both = [*IMAGES, ("memory", (4, "batch"), "tensor(float)")]
    assert values_for(both, Inputs(batch=3))[1].shape == (4, 3)


@pytest.mark.parametrize(
    ("signature", "texts", "parts"),
    [
        (TOKENS, (), ("free sizes besides the batch are not given", "--input input_ids:1x16")),
        (IMAGES, ("x:1x4x8x8",), ("--input x:1x4x8x8", "does not fit")),
        (IMAGES, ("x:1x3x8",), ("does not fit",)),
        (IMAGES, ("x:1x3x8x8:i64",), ("does not fit", "float32")),
        (IMAGES, ("images:1x3x8x8",), ("no such input", "`x`")),
        (IMAGES, ("x:1x3x8x8", "1x2"), ("no such input",)),
        (TOKENS, ("input_id:1x4",), ("mean `input_ids`?",)),
        ([("s", (1,), "tensor(string)")], (), ("tensor(string)",)),
    ],
)
def test_inputs_that_cannot_be_made_are_refused(
    signature: Signature, texts: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        values_for(signature, Inputs(texts))
    for part in parts:
        assert part in str(caught.value)


def test_two_files_that_take_the_same() -> None:
    fixed: Signature = [("x", (2, 3, 8, 8), "tensor(float)")]
    assert merged(IMAGES, fixed) == (fixed, ["x"])
    assert merged(fixed, IMAGES) == (fixed, ["x"])
    turned = TOKENS[::-1]
    assert merged(TOKENS, turned) == (TOKENS, ["input_ids", "attention_mask"])
    renamed: Signature = [("images", (None, 3, 8, 8), "tensor(float)")]
    assert merged(IMAGES, renamed) == (IMAGES, ["images"])


@pytest.mark.parametrize(
    "other",
    [
        [("x", ("batch", 3, 9, 8), "tensor(float)")],
        [("x", ("batch", 3, 8), "tensor(float)")],
        [("x", ("batch", 3, 8, 8), "tensor(float16)")],
        [*IMAGES, ("y", (1,), "tensor(float)")],
        TOKENS,
        [],
    ],
)
def test_two_files_that_do_not(other: Signature) -> None:
    for pair in ((IMAGES, other), (other, IMAGES)):
        with pytest.raises(UsageError, match="do not take the same inputs"):
            merged(*pair)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """What would be timed; nothing is."""
    found: list[Pair] = []

    def fake(pair: Pair, *_: Any, **__: Any) -> Timing:
        results = pair.a(), pair.b()
        found.append(replace(pair, a=lambda: results[0], b=lambda: results[1]))
        return timing(1, 0.9, 1.1)

    monkeypatch.setattr(bench_module, "measure", fake)
    return found


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def written(folder: Path, name: str, *shape: int | str) -> Path:
    """An ONNX file, made without torch, that doubles its input ``x``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / name)
    return folder / name


def test_onnx_files_get_the_same_values(tmp_path: Path, pairs: list[Pair]) -> None:
    a = written(tmp_path, "a.onnx", "batch", 3)
    b = written(tmp_path, "b.onnx", "n", 3)
    bench(a, b, batch=4)
    (pair,) = pairs
    results: Any = pair.a(), pair.b()
    (first,), (second,) = results
    assert first.shape() == [4, 3]
    assert (first.numpy() == second.numpy()).all()
    assert pair.inputs == "x:4x3:f32"
    assert pair.runtime == "onnxruntime CPUExecutionProvider"
    assert pair.notes == ()
    assert pair.names == (str(a), str(b))


def test_a_model_is_exported_as_it_is(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are left in it: exported, not converted; the graph is as before, the temporary file goes."""
    counted = []

    def session(path: Path, *options: Any, **more: Any) -> RuntimeSession:
        counted.append(census(path).batch_norms)
        return RuntimeSession(path, *options, **more)

    monkeypatch.setattr("normfold.targets.runtime.RuntimeSession", session)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = normfold.capture(stuck(), (images(),))
    before = [str(node) for node in graph.nodes]
    said: list[Any] = []
    file = written(tmp_path, "b.onnx", 2, 3, 8, 8)
    bench(graph, file, threads=1, say=said.append)
    (pair,) = pairs
    results: Any = pair.a()
    assert results[0].shape() == [2, 5]  # a batch that one side fixes
    assert counted == [3, 0]
    assert [str(node) for node in graph.nodes] == before
    assert pair.notes == ("a `Graph` was exported as it is (preset `baked`) to be timed",)
    assert [str(event) for event in said] == ["exporting, a `Graph`"]
    assert pair.threads == 1
    assert not list(tmp_path.glob("normfold-bench-*"))


def test_an_interrupt_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(graph: Graph, path: Path) -> None:
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("normfold.judge.pairs.export_bare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(normfold.capture(tiny(), (images(),)), "no.onnx")
    assert not list(tmp_path.glob("normfold-bench-*"))


def test_a_network_is_timed_in_types_that_the_runtime_has(pairs: list[Pair]) -> None:
    """onnxruntime has no product in bfloat16, and bench has no `--precision`."""

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.bfloat16() * torch.linspace(1, 2, 8).bfloat16()).float()

    graph = normfold.capture(Narrow(), (images(),))
    bench(graph, graph)
    (pair,) = pairs
    assert any("float32 in the file" in note for note in pair.notes)


def test_torch_runs_b_on_the_inputs_of_a(tmp_path: Path, pairs: list[Pair]) -> None:
    torch.save(perturb(Tiny()), tmp_path / "net.pt")
    threads = torch.get_num_threads()
    bench(
        f"{NETS}:tiny",
        str(tmp_path / "net.pt"),
        "torch",
        device="cpu",
        threads=2,
        batch=3,
        trust_modules=("tests",),
    )
    (pair,) = pairs
    a, b = pair.a(), pair.b()
    assert isinstance(a, Tensor)
    assert a.shape == (3, 5)
    torch.testing.assert_close(a, b)
    assert not a.requires_grad
    assert (pair.runtime, pair.inputs) == ("torch eager cpu", "x:3x3x8x8:f32")
    assert pair.threads == 2
    assert torch.get_num_threads() == threads


def test_torch_times_modules_and_graphs(pairs: list[Pair]) -> None:
    graph = normfold.capture(tiny(), (images(),))
    folded, _ = normfold.run(graph, "canonicalize,fold-affine,restore,bake")
    bench(graph, folded, "torch", device="cpu")
    bench(tiny(), folded, "torch", device="cpu")
    for pair in pairs:
        torch.testing.assert_close(pair.a(), pair.b())


@pytest.mark.parametrize("batch", [1, 5])
def test_torch_times_graphs_at_the_batch_that_was_asked_for(batch: int, pairs: list[Pair]) -> None:
    graph = normfold.capture(tiny(), (torch.randn(2, 3, 8, 8),))
    bench(graph, graph, "torch", batch=batch, device="cpu")
    assert pairs[0].inputs.startswith(f"x:{batch}x3x8x8")


def test_torch_compile(monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: lambda x: module(x) + 1)
    bench(tiny(), tiny(), "torch", device="cpu", compiled=True)
    assert pairs[0].runtime == "torch compiled cpu"

    def broken(module: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(EnvironmentMissing, match="no compiler found"):
        bench(tiny(), tiny(), "torch", device="cpu", compiled=True)


class Wide(nn.Module):
    """Takes vectors, no images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


def test_networks_for_different_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not take the same inputs"):
        bench(tiny(), Wide().eval(), "torch", device="cpu")
    a, b = written(tmp_path, "a.onnx", "batch", 3), written(tmp_path, "b.onnx", "batch", 4)
    with pytest.raises(UsageError, match=r"A takes `x` batchx3 .*; B takes `x` batchx4 "):
        bench(a, b)


def test_an_onnx_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(LoadError, match=r"a\.onnx"):
        bench(tmp_path / "a.onnx", tmp_path / "a.onnx")
    with pytest.raises(LoadError, match="no such file"):
        bench(tmp_path / "b.onnx", tiny())


def test_values_that_a_file_refuses(tmp_path: Path) -> None:
    """Only running tells: a table of one row has no row 1."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, (9,))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (9, 1))
    table = helper.make_tensor("table", TensorProto.FLOAT, (1, 1), [1.0])
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    graph = helper.make_graph([node], "table", [ids], [y], [table])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="A does not run on these inputs"):
        bench(tmp_path / "a.onnx", tmp_path / "a.onnx")


NONSENSE: dict[str, tuple[dict[str, Any], type[NormfoldError], str]] = {
    "runtime": ({"runtime": "tvm"}, UsageError, "no runtime `tvm`"),
    "rounds": ({"rounds": 5}, UsageError, "5 rounds are too few"),
    "seconds": ({"seconds": -1.0}, UsageError, "not a time"),
    "endless": ({"seconds": math.inf}, UsageError, "not a time"),
    "batch": ({"batch": 0}, UsageError, "at least 1"),
    "threads": ({"threads": 0}, UsageError, "at least 1"),
    "device of ort": ({"device": "cpu"}, UsageError, "--runtime torch"),
    "compile of ort": ({"compiled": True}, UsageError, "--runtime torch"),
    "provider of torch": ({"runtime": "torch", "provider": "cpu"}, UsageError, "--device"),
    "unknown provider": ({"provider": "cudda"}, UsageError, "mean `cuda`?"),
    "unknown device": ({"runtime": "torch", "device": "tpu"}, UsageError, "no device `tpu`"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_before_anything_is_loaded(case: str) -> None:
    options, kind, text = NONSENSE[case]
    with pytest.raises(kind, match=text):
        bench("no.pt", "no.pt", **options)


def test_what_this_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for name in ("cuda", "CUDAExecutionProvider", "TensorrtExecutionProvider"):
        with pytest.raises(EnvironmentMissing, match="was built without"):
            bench("no.pt", "no.pt", provider=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentMissing, match="no CUDA device"):
        bench("no.pt", "no.pt", "torch", device="cuda")


def test_torch_runs_no_onnx_files(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UsageError, match="torch does not run ONNX files"):
        bench(tmp_path / "a.onnx", "no.pt", "torch", device="cpu")
