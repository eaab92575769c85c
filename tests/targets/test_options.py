"""Opsets, targets, external data, metadata; and that a failure leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.errors import ExportError, UsageError
from normfold.ir import Graph
from normfold.target import target
from normfold.targets import RuntimeSession, export_onnx, write
from tests.nets import Compose
from tests.targets.nets import ConvNet, TwoInputs, error, folded, perturb, reference

INPUTS = (torch.linspace(-1, 1, 8).reshape(2, 4), torch.linspace(-1, 1, 6).reshape(2, 3))


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return perturb(TwoInputs())


@pytest.fixture(scope="module")
def graph(net: torch.nn.Module) -> Graph:
    return folded(net, *INPUTS)


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_the_opset_can_be_chosen(graph: Graph, tmp_path: Path, opset: int) -> None:
    exported = export_onnx(graph, tmp_path / "net.onnx", opset=opset)
    model = onnx.load(exported.path)
    assert {item.domain: item.version for item in model.opset_import} == {"": opset}
    assert exported.census.opset == exported.opset == opset
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("opset", "why"), [(17, "too old"), (99, "too new")])
def test_other_opsets_are_refused(graph: Graph, tmp_path: Path, opset: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        export_onnx(graph, tmp_path / "net.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_an_unknown_target_gets_a_suggestion(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean `ort-x86`"):
        export_onnx(graph, tmp_path / "net.onnx", target="ort-x64")
    with pytest.raises(UsageError, match="known: ort-x86, ort-arm, openvino, trt, trt-rtx, pt2"):
        target("coreml")


def test_a_missing_folder_is_a_usage_error(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        export_onnx(graph, tmp_path / "no" / "net.onnx")


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, Graph]:
    """A net whose weights go beside the file: the limits are those of a toy."""
    monkeypatch.setattr(write, "SINGLE_FILE_LIMIT", 1000)
    monkeypatch.setattr(write, "_SMALL", 64)
    monkeypatch.setattr(write, "_LARGE", 256)
    net = perturb(ConvNet())
    return net, folded(net, torch.randn(2, 3, 8, 8))


def test_many_weights_go_into_a_file_beside(
    big: tuple[torch.nn.Module, Graph], tmp_path: Path
) -> None:
    net, graph = big
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.data_path == tmp_path / "net.onnx.data"
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}
    assert exported.bytes == sum(p.stat().st_size for p in exported.files)
    stored = onnx.load(exported.path, load_external_data=False).graph.initializer
    entries = [{e.key: e.value for e in t.external_data} for t in stored if t.external_data]
    assert len(entries) >= 2
    assert {entry["location"] for entry in entries} == {"net.onnx.data"}
    assert any(int(entry["offset"]) % 4096 == 0 and entry["offset"] != "0" for entry in entries)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in exported.files:
        path.rename(moved / path.name)
    x = torch.randn(3, 3, 8, 8)
    results = RuntimeSession(moved / "net.onnx", threads=1).run([x])
    assert error(results, reference(net, x)) < 3e-6


def test_one_file_can_be_insisted_on_only_below_the_limit(
    big: tuple[torch.nn.Module, Graph], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="one file"):
        export_onnx(big[1], tmp_path / "net.onnx", external_data=False)
    assert not list(tmp_path.iterdir())


def test_going_back_to_one_file_removes_the_other(graph: Graph, tmp_path: Path) -> None:
    export_onnx(graph, tmp_path / "net.onnx", external_data=True)
    assert (tmp_path / "net.onnx.data").exists()
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.data_path is None
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_both_forms_hold_the_same(graph: Graph, tmp_path: Path) -> None:
    one = onnx.load(export_onnx(graph, tmp_path / "a.onnx").path)
    two = onnx.load(export_onnx(graph, tmp_path / "b.onnx", external_data=True).path)
    weights = [
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_same_graph_gives_the_same_bytes(graph: Graph, tmp_path: Path) -> None:
    paths = [export_onnx(graph, tmp_path / name).path for name in ("a.onnx", "b.onnx")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("where", ["translate", "weights", "replace"])
def test_a_failure_leaves_the_old_file(
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    external: bool,
    where: str,
) -> None:
    monkeypatch.setattr(write, "_SMALL", 16)
    (tmp_path / "net.onnx").write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    if where == "translate":
        monkeypatch.setattr(torch.onnx, "export", fail)
    else:
        monkeypatch.setattr(
            *((write, "_write_tensor", fail) if where == "weights" else (os, "replace", fail))
        )
    with pytest.raises(ExportError):
        export_onnx(graph, tmp_path / "net.onnx", external_data=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"net.onnx": b"old"}


def test_an_interruption_leaves_the_old_file(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(graph, tmp_path / "net.onnx")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"net.onnx": b"old"}


def test_new_weights_never_meet_an_old_model(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(graph, tmp_path / "net.onnx", external_data=True)
    replace, seen = os.replace, list[bool]()

    def watch(source: Path, target: Path) -> None:
        seen.append((tmp_path / "net.onnx").exists())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    export_onnx(graph, tmp_path / "net.onnx", external_data=True)
    assert seen == [False, False]


def test_a_fixed_axis_is_an_error(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.targets import onnx as module

    def fixed(model: Any, names: Any) -> None:
        model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)([2, 4])

    monkeypatch.setattr(module, "name_axes", fixed)
    with pytest.raises(ExportError, match="axis 0 of `left` is dynamic"):
        export_onnx(graph, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_an_op_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.special.zeta(x.abs() + 2, x.abs() + 1)
            return y

    with pytest.raises(ExportError, match="zeta"):
        export_onnx(folded(Odd(), torch.randn(2, 3)), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_file_says_who_made_it_and_from_what(
    graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"pipeline": "fold-affine,bake", "source": "timm:resnet18"}
    exported = export_onnx(graph, tmp_path / "net.onnx", metadata=said)
    model = onnx.load(exported.path)
    props = {p.key: p.value for p in model.metadata_props}
    assert model.producer_name == "normfold"
    assert props == said | {"torch": torch.__version__}
    assert [n.name for n in model.graph.node][:2] == ["a/Gemm", "b/Gemm"]
    assert not model.graph.node[0].metadata_props  # its name says where it is from
    assert capsys.readouterr() == ("", "")


def test_what_an_op_assumes_anyway_is_not_written(tmp_path: Path) -> None:
    net = Compose(
        lambda m, x: m.b(F.gelu(m.a(x))).reshape(-1, 2, 2), a=nn.Linear(3, 4), b=nn.Linear(4, 4)
    )
    exported = export_onnx(folded(net, torch.randn(2, 3)), tmp_path / "net.onnx")
    said = {n.op_type: {a.name for a in n.attribute} for n in onnx.load(exported.path).graph.node}
    assert said == {"Gemm": {"transB"}, "Gelu": set(), "Reshape": set()}


def test_no_path_of_this_machine_is_in_the_file(graph: Graph, tmp_path: Path) -> None:
    here = os.fsencode(Path(__file__).parent)
    assert here not in export_onnx(graph, tmp_path / "a.onnx").path.read_bytes()
    assert (
        b"nets.py" in export_onnx(graph, tmp_path / "b.onnx", source_lines=True).path.read_bytes()
    )
