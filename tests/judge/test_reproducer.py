"""The smallest part of a network that fails: where it is cut, and that what is written shows the fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import normfold
from normfold.errors import LoadError, UsageError
from normfold.ir import Graph
from normfold.judge import verifier
from normfold.judge.runs import run_rounded
from tests.judge.broken_passes import DropBias, ScaleLinears
from tests.judge.test_layers import X, faulty, net
from tests.nets import Encoder, perturb

FOLDED = "canonicalize,fold-affine,restore,bake"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return normfold.capture(net(), (X,))


@pytest.fixture(scope="module")
def file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    assert normfold.convert(graph, "folded", output=folder, export="onnx").ok
    return next(folder.glob("*.onnx"))


def ops(path: Path) -> list[str]:
    if path.suffix == ".onnx":
        return [node.op_type for node in onnx.load(path).graph.node]
    nodes = torch.export.load(path).graph.nodes
    found = [str(n.target).split(".") for n in nodes if n.op == "call_function"]
    return [name[1] for name in found if name[0] == "aten"]  # not parts of tuples


def reproduced(folder: Path, suffix: str) -> bool:
    """True if the files of a folder do not agree, on their own inputs and by the command of its README."""
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "inputs.npz",
        "original.pt2",
        f"result{suffix}",
    }
    assert "normfold verify original.pt2 result" in (folder / "README.md").read_text()
    check = normfold.verify(
        folder / "original.pt2",
        folder / f"result{suffix}",
        inputs_from=str(folder / "inputs.npz"),
        batch="static",
    )
    return any(not output.ok for output in check.outputs if output.inputs == "sample 0")


@pytest.mark.parametrize(
    ("weight", "path", "before", "after"),
    [
        ("stem.weight", "stem", ["conv2d"], ["Conv"]),
        (
            "blocks.1.conv.weight",
            "blocks.1",
            ["conv2d", "_native_batch_norm_legit_no_training", "relu"],
            ["Conv", "Relu"],
        ),
        ("head.weight", "head", ["linear"], ["Gemm"]),
    ],
)
def test_of_a_file(
    weight: str,
    path: str,
    before: list[str],
    after: list[str],
    graph: Graph,
    file: Path,
    tmp_path: Path,
) -> None:
    """The folded norm is not taken for the fault: the part ends behind it."""
    bad = faulty(file, weight, tmp_path)
    found = normfold.bisect(graph, FOLDED, file=bad, reproducer=tmp_path / "fault")
    assert found is not None
    assert (found.spec, found.file) == ("", "faulty.onnx")
    assert found.layer is not None
    assert found.layer.path.startswith(path)
    assert "test_layers.py" in found.layer.op
    assert reproduced(tmp_path / "fault", ".onnx")
    assert ops(tmp_path / "fault" / "original.pt2") == before
    assert ops(tmp_path / "fault" / "result.onnx") == after


def test_of_a_pass(graph: Graph, tmp_path: Path) -> None:
    found = normfold.bisect(
        graph,
        [ScaleLinears(("blocks.2.conv", "head"))],
        reproducer=tmp_path / "fault",
    )
    assert found is not None
    assert found.site == "blocks.2.conv"
    assert found.layer is not None
    assert found.layer.path == "blocks.2.conv"
    assert reproduced(tmp_path / "fault", ".pt2")
    assert ops(tmp_path / "fault" / "original.pt2") == ["conv2d"]
    assert ops(tmp_path / "fault" / "result.pt2") == ["mul", "conv2d"]
    assert "scale-linears" in (tmp_path / "fault" / "README.md").read_text()
    (given,) = np.load(tmp_path / "fault" / "inputs.npz").values()
    assert given.shape[1:] == (8, 7, 7)


def test_of_attention(tmp_path: Path) -> None:
    """Several tensors go in where a part reads several; sizes that were free are fixed."""
    graph = normfold.capture(perturb(Encoder()), (torch.randn(2, 5, 8),))
    found = normfold.bisect(graph, [DropBias()], reproducer=tmp_path / "fault")
    assert found is not None
    assert reproduced(tmp_path / "fault", ".pt2")
    assert ops(tmp_path / "fault" / "original.pt2") == ["linear"]


def test_two_faults_leave_one_part(graph: Graph, file: Path, tmp_path: Path) -> None:
    bad = faulty(faulty(file, "stem.weight", tmp_path), "head.weight", tmp_path)
    found = normfold.bisect(graph, FOLDED, file=bad, reproducer=tmp_path / "fault")
    assert found is not None
    assert reproduced(tmp_path / "fault", ".onnx")


def test_excuses_are_looked_for_on_one_input(
    graph: Graph, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict that fails on one input fails: the others are not run eight times each."""
    runs: list[Any] = []

    def counted(*args: Any) -> Any:
        runs.append(args)
        return run_rounded(*args)

    monkeypatch.setattr(verifier, "run_rounded", counted)
    judge = verifier.Verifier(graph)
    assert len(judge.cases) > 1
    bad = faulty(file, "head.weight", tmp_path)
    found = normfold.bisect(graph, FOLDED, file=bad, verifier=judge)
    assert found is not None
    assert len(found.after.outputs) == sum(len(case.rows or [1]) for case in judge.cases)
    assert len(runs) == 2 * verifier.DRAWS
    assert not judge.brief


def test_what_is_right_leaves_nothing(graph: Graph, file: Path, tmp_path: Path) -> None:
    seen: list[normfold.Progress] = []
    folder = tmp_path / "fault"
    assert (
        normfold.bisect(graph, FOLDED, file=file, reproducer=folder, progress=seen.append) is None
    )
    assert [item.text for item in seen if item.stage == file.name] == ["ok", "ok"]
    assert not folder.exists()


def test_a_file_that_the_export_spoils(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold import faults, targets

    write = targets.export_onnx

    def damaged(given: Graph, path: Path, **options: object) -> object:
        written = write(given, path, **options)  # type: ignore[arg-type]
        if path.name == "result.onnx":
            faulty(path, "head.weight", tmp_path).replace(path)
        return written

    assert normfold.bisect(graph, FOLDED, export=True) is None
    monkeypatch.setattr(faults, "export_onnx", damaged)
    found = normfold.bisect(graph, FOLDED, export=True)
    assert found is not None
    assert (found.file, found.after.ok) == ("result.onnx", False)
    assert found.layer is not None
    assert found.layer.path == "head"


def test_wrong_input(graph: Graph, file: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="is not empty"):
        normfold.bisect(graph, FOLDED, reproducer=full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(LoadError, match="there is no such file"):
        normfold.bisect(graph, FOLDED, file=tmp_path / "no.onnx")
    with pytest.raises(LoadError, match=r"not an \.onnx file"):
        normfold.bisect(graph, FOLDED, file=full / "mine.txt")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(normfold.errors.NormfoldError, match="onnx"):
        normfold.bisect(graph, FOLDED, file=tmp_path / "text.onnx")


def test_a_fault_below_the_rounding_of_the_type(tmp_path: Path) -> None:
    """1e-9 is a fault in float64, and no part shows it in float32; nothing is left behind."""

    class Off(ScaleLinears):
        def check(self, graph: Graph, match):  # type: ignore[no-untyped-def]
            return match.planned(1 + 1e-9, "")

    torch.manual_seed(0)
    graph = normfold.capture(nn.Linear(6, 6).eval(), (torch.randn(2, 6),))
    plain, found = (
        normfold.bisect(graph, [Off()]),
        normfold.bisect(graph, [Off()], reproducer=tmp_path / "fault"),
    )
    assert plain is not None
    assert found is not None
    assert (found.words, found.site, plain.no_reproducer) == (plain.words, plain.site, "")
    assert "no part of the network fails by itself" in found.no_reproducer
    assert not (tmp_path / "fault").exists()
