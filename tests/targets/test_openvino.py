"""OpenVINO as a runtime: the same numbers as the network, types and names of the file, IR files, refusals."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.helper as oh
import pytest
import torch
from torch import Tensor, nn

from normfold.domains.observed import measure
from normfold.errors import EnvironmentMissing, ExportError, UsageError
from normfold.ir import Graph, capture
from normfold.ranges.ranges import merge_ranges
from normfold.rewrite import parse, run_pipeline
from normfold.targets import openvino as module
from normfold.targets.onnx import export_onnx
from normfold.targets.openvino import OpenvinoSession, runs, runtime_name, write_ir
from normfold.targets.runtime import RuntimeSession
from tests.nets import perturb
from tests.ranges.nets import gated, inverted, joined, residual
from tests.targets.nets import ConvNet, Dictionary, Transformer, error, folded, reference
from tests.targets.nets import perturb as perturbed

IMAGE = (4, 3, 12, 10)
X86 = platform.machine().lower() in ("x86_64", "amd64")


def write(path: Path, op: str, kind: int = onnx.TensorProto.FLOAT, inputs: int = 1) -> Path:
    names = ["a", "b"][:inputs]
    infos = [oh.make_tensor_value_info(name, kind, ["N", 4]) for name in names]
    graph = oh.make_graph(
        [oh.make_node(op, names, ["y"])], "g", infos, [oh.make_tensor_value_info("y", kind, None)]
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), path)
    return path


def exported(net: nn.Module, path: Path, *args: Tensor, opset: int | None = None) -> Path:
    export_onnx(folded(net, *args), path, opset=opset)
    return path


# -- floats ---------------------------------------------------------------------------------------


def test_convolutions_at_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = perturbed(ConvNet())
    session = OpenvinoSession(exported(net, tmp_path / "net.onnx", torch.randn(2, 3, 8, 8)))
    for batch in (2, 1, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert error(session.run([x]), reference(net, x)) < 1e-5
    ((_, shape, kind),) = session.signature()
    assert shape == (None, 3, 8, 8)
    assert kind == "tensor(float)"
    assert session.precision == "f32"


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("opset", [20, 23])
def test_transformers(tmp_path: Path, norm: type[nn.Module], opset: int) -> None:
    torch.manual_seed(0)
    net, x = perturbed(Transformer(norm)), torch.randn(2, 3, 8, 8)
    session = OpenvinoSession(exported(net, tmp_path / "net.onnx", x, opset=opset))
    assert error(session.run([x]), reference(net, x)) < 1e-5
    if X86:  # one kernel a norm, whether the file has one op for it or several
        kinds = [kernel.kind for kernel in session.kernels()]
        assert kinds.count("MVN" if norm is nn.LayerNorm else "RMS") == 5


class Masked(nn.Module):
    """Token ids and a mask of integers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.table(ids)) * mask.unsqueeze(-1)
        return self.head(x), mask.sum(1)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, ids, mask = Masked().eval(), torch.randint(0, 11, (2, 6)), torch.randint(0, 2, (2, 6))
    session = OpenvinoSession(exported(net, tmp_path / "net.onnx", ids, mask))
    expected = reference(net, ids, mask)
    found = session.run([ids, mask])
    assert error(found, expected) < 1e-5
    assert [x.dtype for x in found] == [torch.float32, torch.int64]
    assert session.input_names == ("ids", "mask")
    assert [kind for _, _, kind in session.signature()] == ["tensor(int64)"] * 2
    assert error(session.run({"mask": mask, "ids": ids}), expected) < 1e-5


def test_outputs_keep_their_names_and_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturbed(Dictionary()), torch.randn(3, 4)
    path = exported(net, tmp_path / "net.onnx", x)
    session, other = OpenvinoSession(path), RuntimeSession(path)
    assert session.output_names == other.output_names
    assert session.input_names == other.input_names
    assert error(session.run([x]), reference(net, x)) < 1e-5


def test_lower_precision_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturbed(Transformer()), torch.randn(2, 3, 8, 8)
    path = exported(net, tmp_path / "net.onnx", x)
    try:
        session = OpenvinoSession(path, "bf16", threads=1)
    except EnvironmentMissing:
        pytest.skip("no bfloat16 on this processor")
    assert session.precision == "bf16"
    assert 1e-5 < error(session.run([x]), reference(net, x)) < 0.1
    with pytest.raises(UsageError, match="no precision `int8`"):
        OpenvinoSession(path, "int8")  # type: ignore[arg-type]


def test_prepared_runs_are_apart(tmp_path: Path) -> None:
    session = OpenvinoSession(write(tmp_path / "net.onnx", "Relu"))
    (first,) = session.run([torch.ones(2, 4)])
    call = session.prepare([torch.zeros(3, 4)])
    call()
    assert torch.equal(first, torch.ones(2, 4))
    (second,) = session.run([torch.full((1, 4), 2.0)])
    call()
    assert torch.equal(second, torch.full((1, 4), 2.0))
    assert torch.equal(first, torch.ones(2, 4))


# -- types and inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, onnx.TensorProto.FLOAT),
        (torch.float16, onnx.TensorProto.FLOAT16),
        (torch.float64, onnx.TensorProto.DOUBLE),
        (torch.bfloat16, onnx.TensorProto.BFLOAT16),
        (torch.int64, onnx.TensorProto.INT64),
        (torch.int32, onnx.TensorProto.INT32),
        (torch.uint8, onnx.TensorProto.UINT8),
        (torch.bool, onnx.TensorProto.BOOL),
    ],
)
def test_tensors_keep_their_type(tmp_path: Path, dtype: torch.dtype, kind: int) -> None:
    x = torch.tensor([[0.0, 1.0, 2.5, 3.0]]).to(dtype)
    path = write(tmp_path / "net.onnx", "Identity", kind)
    session = OpenvinoSession(path)
    (y,) = session.run([x])
    assert y.dtype == dtype
    assert torch.equal(y, x)
    assert session.signature()[0][2] == RuntimeSession(path).signature()[0][2]


def test_wrong_inputs(tmp_path: Path) -> None:
    session = OpenvinoSession(write(tmp_path / "net.onnx", "Sub", inputs=2))
    a, b = torch.full((2, 4), 3.0), torch.ones(2, 4)
    assert torch.equal(session.run([a, b])[0], torch.full((2, 4), 2.0))
    assert torch.equal(session.run({"b": a, "a": b})[0], torch.full((2, 4), -2.0))
    with pytest.raises(UsageError, match="it takes a, b"):
        session.run([a])
    with pytest.raises(UsageError, match="it takes a, b"):
        session.run({"a": a, "x": b})
    with pytest.raises(ExportError, match="shape"):
        session.run([a, torch.ones(2, 5)])
    with pytest.raises(ExportError, match="precision"):
        session.run([a, b.double()])


def test_integers_are_not_cut(tmp_path: Path) -> None:
    session = OpenvinoSession(write(tmp_path / "net.onnx", "Identity", onnx.TensorProto.INT64))
    with pytest.raises(UsageError, match="`a` does not fit into 32 bits"):
        session.run([torch.tensor([[1, 2, 3, 1 << 40]])])
    assert session.run([torch.zeros(0, 4, dtype=torch.int64)])[0].shape == (0, 4)


# -- integers -------------------------------------------------------------------------------------


def integers(build: Callable[[], nn.Module]) -> tuple[Graph, Tensor]:
    """Weights of 7 bits: sums of 8 overflow on processors without VNNI."""
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    graph, _ = run_pipeline(
        capture(perturb(build()), (x,)), parse("canonicalize,fold-affine,restore,bake")
    )
    merge_ranges(measure(graph, [(x,)]), {})
    text = "quantize-weights{bits=7},quantize-activations{target=openvino},bake"
    return run_pipeline(graph, parse(text))[0], x


@pytest.mark.parametrize("build", [residual, inverted, gated, joined])
def test_grids_of_activations(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    graph, x = integers(build)
    path = tmp_path / "net.onnx"
    export_onnx(graph, path, target="openvino")
    session = OpenvinoSession(path)
    found, expected = session.run([x]), RuntimeSession(path, "none").run([x])
    # a kernel may round a value between two steps to the other one
    assert error(found, [y.double() for y in expected]) < 0.02
    if X86:
        linear = [k for k in session.kernels() if k.kind in ("Convolution", "FullyConnected")]
        assert {kernel.takes for kernel in linear} == {"u8"}
    xml, _ = write_ir(path, tmp_path / "net.xml")
    assert torch.equal(OpenvinoSession(xml).run([x])[0], found[0])


@pytest.mark.parametrize(
    "text",
    ["quantize-weights{bits=4 block=32}", "quantize-weights{bits=8}", "quantize-dynamic"],
)
def test_grids_of_weights(text: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 32).eval(), torch.randn(3, 5, 256)
    path = tmp_path / "net.onnx"
    export_onnx(run_pipeline(capture(layer, (x,)), parse(f"{text},bake"))[0], path)
    expected = [y.double() for y in RuntimeSession(path, "none").run([x])]
    session = OpenvinoSession(path)
    assert error(session.run([x]), expected) < 1e-5
    assert error(OpenvinoSession(path, group=32).run([x]), expected) < 0.02
    xml, _ = write_ir(path, tmp_path / "net.xml")
    assert torch.equal(OpenvinoSession(xml).run([x])[0], session.run([x])[0])


# -- IR files -------------------------------------------------------------------------------------


def test_an_ir_gives_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = perturbed(Transformer()), torch.randn(2, 3, 8, 8)
    path = exported(net, tmp_path / "net.onnx", x)
    (tmp_path / "net.bin").write_text("older")
    written = write_ir(path, tmp_path / "net.xml")
    assert written == [tmp_path / "net.xml", tmp_path / "net.bin"]
    assert sorted(os.listdir(tmp_path)) == ["net.bin", "net.onnx", "net.xml"]
    count = sum(p.numel() for p in net.parameters())
    assert written[1].stat().st_size > 3 * count  # 2 where they are cut to float16
    one, other = OpenvinoSession(path), OpenvinoSession(written[0])
    assert other.signature() == one.signature()
    assert other.output_names == one.output_names
    assert torch.equal(one.run([x])[0], other.run([x])[0])
    ((name, run),) = runs(written[0])
    assert name == "openvino"
    assert torch.equal(one.run([x])[0], run([x])[0])


def test_a_failure_keeps_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "net.onnx", "Relu")
    for name in ("net.xml", "net.bin"):
        (tmp_path / name).write_text("older")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(module._openvino(), "save_model", fails)
    with pytest.raises(ExportError, match="no space"):
        write_ir(path, tmp_path / "net.xml")
    assert sorted(os.listdir(tmp_path)) == ["net.bin", "net.onnx", "net.xml"]
    assert (tmp_path / "net.xml").read_text() == "older"


def test_where_an_ir_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", "Relu")
    with pytest.raises(UsageError, match=r"an `\.xml` file"):
        write_ir(path, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="does not exist"):
        write_ir(path, tmp_path / "gone" / "net.xml")


# -- refusals -------------------------------------------------------------------------------------


def test_damaged_files_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    whole = exported(perturbed(ConvNet()), tmp_path / "net.onnx", torch.randn(2, 3, 8, 8))
    write_ir(whole, tmp_path / "cut.xml")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:100])
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.xml").write_text("text")
    for name in ("cut.xml", "cut.onnx", "text.onnx", "text.xml", "gone.onnx", "gone.xml"):
        with pytest.raises(ExportError, match="refuses"):
            OpenvinoSession(tmp_path / name)
    with pytest.raises(ExportError, match="refuses"):
        write_ir(tmp_path / "cut.onnx", tmp_path / "new.xml")
    assert not (tmp_path / "new.xml").exists()
    assert not capfd.readouterr().err


def test_an_op_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="operations: Det-20") as caught:
        OpenvinoSession(write(tmp_path / "net.onnx", "Det"))
    assert caught.value.hint
    assert "src/" not in str(caught.value)


def test_without_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "net.onnx", "Relu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    calls: list[Callable[[], object]] = [
        lambda: OpenvinoSession(path),
        lambda: write_ir(path, tmp_path / "net.xml"),
        runtime_name,
    ]
    for call in calls:
        with pytest.raises(EnvironmentMissing, match=r"normfold\[openvino\]"):
            call()


def test_nothing_is_reported_to_anyone(tmp_path: Path) -> None:
    code = "from normfold.targets.openvino import runtime_name; print(runtime_name())"
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("openvino 20")
    assert not (tmp_path / "intel").exists()
