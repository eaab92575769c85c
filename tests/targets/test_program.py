"""The exported program that is put together without tracing: the same network as a traced one, and .pt2 files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from normfold.data.opening import capture_source
from normfold.errors import ExportError, UsageError
from normfold.ir import capture
from normfold.ir.custom_ops import channel_affine
from normfold.job import Source
from normfold.rewrite import parse, run_pipeline
from normfold.target import TARGETS
from normfold.targets import RuntimeSession, export_onnx, export_pt2
from normfold.targets.program import LiftedProgram, exported_program
from normfold.targets.typed import lower
from tests.targets.nets import (
    ConvNet,
    Kept,
    Transformer,
    Transposed,
    error,
    folded,
    perturb,
    reference,
)


@pytest.mark.parametrize("kind", [ConvNet, Kept, Transformer, Transposed])
def test_a_lifted_program_is_the_traced_one(kind: type[nn.Module]) -> None:
    x = torch.randn(2, 4 if kind is Transposed else 3, 8, 8)
    graph = folded(perturb(kind()), x)
    lifted, traced = exported_program(graph), exported_program(graph, retrace=True)
    assert type(lifted) is LiftedProgram
    assert type(traced) is ExportedProgram
    with torch.no_grad():
        y = torch.cat([x, x, x])
        assert torch.equal(
            lifted.module(check_guards=False)(y), traced.module(check_guards=False)(y)
        )
    shared = {tensor.data_ptr() for tensor in graph.module.parameters()}
    assert {tensor.data_ptr() for tensor in lifted.parameters()} == shared


def test_nothing_is_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = capture(perturb(Kept()), (torch.randn(2, 3, 4, 4),))
    graph = folded(perturb(ConvNet()), torch.randn(2, 3, 8, 8))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refuse)
    monkeypatch.setattr(torch.export, "export", refuse)
    export_onnx(graph, tmp_path / "net.onnx")
    assert export_onnx(kept, tmp_path / "kept.onnx").census.batch_norms == 1
    x = (torch.randn(2, 3, 8, 8),)
    half = lower(graph, torch.float16, [x])
    exported = export_onnx(half.graph, tmp_path / "half.onnx")
    assert exported.census.ops["Cast"] == 2
    assert exported.notes == ()


def test_inputs_of_any_number_are_traced_again_as_they_were_captured() -> None:
    class Sum(nn.Module):
        def forward(self, first: Tensor, *tensors: Tensor) -> Tensor:
            return first + sum(tensors)

    graph = capture(Sum(), (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1)))
    traced = exported_program(graph, retrace=True)
    y = traced.module(check_guards=False)(torch.ones(5, 3), torch.ones(5, 3), torch.ones(5, 1))
    assert torch.equal(y, torch.full((5, 3), 3.0))


def test_a_graph_that_cannot_be_lifted_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = perturb(ConvNet())
    x = torch.randn(3, 3, 8, 8)
    graph = folded(net, x)
    monkeypatch.delattr(graph.module, "_in_spec")
    assert type(exported_program(graph)) is ExportedProgram
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.census.dynamic["image"] == {0: "batch"}
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor, flag: bool) -> Tensor:
            return x + y if flag else x - y

    graph = folded(Scaled(), torch.ones(2, 3), torch.ones(2, 3), True)
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.input_names == ("x", "y")
    session = RuntimeSession(exported.path, threads=1)
    assert torch.equal(
        session.run([torch.ones(4, 3), torch.ones(4, 3)])[0], torch.full((4, 3), 2.0)
    )


def test_a_program_file_is_read_without_normfold(tmp_path: Path) -> None:
    net = perturb(Transposed())
    x = torch.randn(2, 4, 5, 5)
    path = export_pt2(folded(net, x), tmp_path / "net.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\n"
        f"m = torch.export.load({str(path)!r}).module()\n"
        f"y = m(torch.cat([torch.load({str(tmp_path / 'x.pt')!r})] * 3))\n"
        f"assert 'normfold' not in sys.modules\ntorch.save(y.detach(), {str(tmp_path / 'y.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert error([torch.load(tmp_path / "y.pt")], reference(net, torch.cat([x, x, x]))) < 3e-6


def test_a_failed_program_file_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = folded(perturb(ConvNet()), torch.randn(2, 3, 8, 8))
    (tmp_path / "net.pt2").write_bytes(b"old")

    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(ExportError, match=r"\.pt2"):
        export_pt2(graph, tmp_path / "net.pt2")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"net.pt2": b"old"}
    with pytest.raises(UsageError, match="folder"):
        export_pt2(graph, tmp_path / "no" / "net.pt2")


def test_an_op_that_the_exporter_does_not_know_is_expanded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = channel_affine(torch.sigmoid(x), self.a, None, 1)
            return torch.sigmoid(y)

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(4))

    net, x = Norm(), torch.randn(3, 4, 5)
    graph = folded(net, x, text="canonicalize,bake")
    assert any("channel_affine" in str(node.target) for node in graph.nodes)
    monkeypatch.setattr(ExportedProgram, "run_decompositions", None)
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.census.ops["Mul"] == len(exported.census.per_channel) == 1
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6


@pytest.mark.parametrize("kind", [ConvNet, Kept, Transformer, Transposed])
def test_a_program_file_is_functional_and_reads_again(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    """Converters refuse the dialect TRAINING; RMS norms are primitives in the file, and RMS norms for normfold."""
    x = torch.randn(2, 4 if kind is Transposed else 3, 8, 8)
    net = perturb(kind())
    text = "canonicalize,fold-affine{split-norms=true},center-stream,restore,bake"
    path = export_pt2(folded(net, x, text=text), tmp_path / "net.pt2")
    program = torch.export.load(path)
    assert program.dialect == "ATEN"
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in ops if "rms_norm" in name or "normfold" in name}
    again, _ = run_pipeline(capture_source(Source(path)), parse(text))
    with torch.no_grad():
        found = [again(torch.cat([x, x, x]))]
    assert error(found, reference(net, torch.cat([x, x, x]))) < 3e-6
    if kind is Transformer:
        exported = export_onnx(again, tmp_path / "net.onnx", target=TARGETS["ort-x86"])
        assert exported.census.ops["RMSNormalization"] == 5
        assert exported.census.ops["Gelu"] == exported.census.ops["Attention"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ConvNet, Transformer])
def test_a_program_file_is_what_AOTInductor_compiles(kind: type[nn.Module], tmp_path: Path) -> None:
    """The lines of docs/targets.md; a C++ compiler and half a minute."""
    net, x = perturb(kind()), torch.randn(2, 3, 8, 8)
    path = export_pt2(folded(net, x), tmp_path / "net.pt2")
    package = torch._inductor.aoti_compile_and_package(
        torch.export.load(path), package_path=str(tmp_path / "compiled.pt2")
    )
    with torch.no_grad():
        found = torch._inductor.aoti_load_package(package)(torch.cat([x, x, x]))
    assert error([found], reference(net, torch.cat([x, x, x]))) < 3e-6
