"""Outputs that a pass drops, renames and adds: the call, the file, and a verdict on what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import PassError
from normfold.ir import Graph, capture
from normfold.ir.graph import op_name
from normfold.report import PassReport
from normfold.rewrite import Pass, Rewriter, parse
from tests.nets import perturb


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return {"logits": self.head(y), "aux": [y, y + 1], "none": None}


@dataclass(frozen=True)
class Edits(Pass):
    """Whatever is done to the outputs."""

    name: ClassVar[str] = "edits"
    what: Callable[[Rewriter], None] = print

    def run(self, graph: Graph, limit: int | None = None) -> PassReport:
        self.what(Rewriter(graph))
        graph.recompile()
        return PassReport("edits", self.exactness.value, modified=True)


X = torch.randn(2, 4)


def edited(*edits: tuple[Any, ...]) -> Graph:
    def what(rewriter: Rewriter) -> None:
        for name, *args in edits:
            getattr(rewriter.outputs, name)(*args)

    passes = [*parse("canonicalize,fold-affine"), Edits(what), *parse("restore,bake")]
    graph = capture(perturb(Several()), (X,))
    result, report = normfold.run(graph, passes, verify="each")
    assert report.ok
    return result


def test_one_is_dropped() -> None:
    result = edited(("drop", "aux.0"))
    assert result.output_names == ("logits", "aux.1")
    found = result(X)
    assert set(found) == {"logits", "aux", "none"}
    assert len(found["aux"]) == 1
    assert found["none"] is None


def test_empty_containers_go_and_what_is_used_no_more() -> None:
    result = edited(("drop", "aux.0"), ("drop", "aux.1"))
    assert set(result(X)) == {"logits", "none"}
    result = edited(("drop", "logits"), ("drop", "aux.1"))
    assert "head.weight" not in dict(result.module.named_parameters())


def test_renamed_ones_are_compared(tmp_path: Path) -> None:
    result = edited(("drop", "aux.0"), ("rename", "aux.1", "features"))
    assert result.output_names == ("logits", "features")
    path = normfold.targets.export_onnx(result, tmp_path / "net.onnx").path
    session = onnxruntime.InferenceSession(path)
    assert [item.name for item in session.get_outputs()] == ["logits", "features"]


def test_one_is_added() -> None:
    graph = capture(perturb(Several()), (X,))

    def what(rewriter: Rewriter) -> None:
        norm = next(node for node in rewriter.graph.nodes if op_name(node) == "layer_norm")
        rewriter.outputs.add("norm", norm)

    result, report = normfold.run(graph, [*parse("canonicalize"), Edits(what)], verify="each")
    assert report.ok
    assert result.output_names[-1] == "norm"
    assert result(X)["norm"].shape == (2, 6)
    (check,) = [item.check for item in report.passes if item.name == "edits"]
    assert check is not None
    assert "1 outputs that a pass added" in check.note
    assert {item.output for item in check.outputs} == {"logits", "aux.0", "aux.1"}


def test_a_wrong_output_is_seen_behind_a_dropped_one() -> None:
    graph = capture(perturb(Several()), (X,))

    def what(rewriter: Rewriter) -> None:
        rewriter.outputs.drop("logits")
        plus = [node for node in rewriter.graph.nodes if op_name(node) == "add"][-1]
        rewriter.set_argument(plus, 1, 1.001)

    _, report = normfold.run(graph, [Edits(what)], verify="each")
    assert not report.ok


def test_refusals() -> None:
    graph = capture(perturb(nn.Linear(4, 3)), (X,))
    outputs = Rewriter(graph).outputs
    with pytest.raises(PassError, match="the only output"):
        outputs.drop("output")
    with pytest.raises(PassError, match="there is no output `logits`"):
        outputs.rename("logits", "scores")
    with pytest.raises(PassError, match="already"):
        outputs.add("output", next(iter(graph.nodes)))
