"""More effort: what is tried, on what it is judged, and what of it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import normfold
from normfold.ir import Graph, capture
from normfold.job import Quantize
from normfold.progress import silent
from normfold.ranges.calibration import Inputs
from normfold.ranges.synthesis import image_shapes
from normfold.report import Report
from normfold.report.quantization import Evidence
from normfold.rewrite import parse, run_pipeline
from normfold.steps.effort import WAYS, best_way
from normfold.steps.pipelines import About, pipeline
from tests.nets import perturb
from tests.ranges.nets import inverted, residual

QUICK: dict[str, Any] = {"images": 16, "synthesis_steps": 3}


def folded(unequal: float = 1.0) -> Graph:
    """The residual network; a factor goes from one channel's weights into the next layer's."""
    torch.manual_seed(0)
    network: Any = perturb(residual())
    with torch.no_grad():
        network.first[1].weight[0] *= unequal
        network.first[1].bias[0] *= unequal
        network.second[0].weight[:, 0] /= unequal
    graph = capture(network, (torch.randn(2, 3, 12, 10),))
    return run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))[0]


def inputs(count: int = 16, batches: int = 1) -> Inputs:
    made: list[tuple[Tensor, ...]] = [(torch.randn(count, 3, 12, 10),) for _ in range(batches)]
    return Inputs(made, None, Evidence("test"))


def tried(graph: Graph, given: Inputs, **options: Any) -> tuple[str, dict[str, float]]:
    step = Quantize("int8", **options)
    way, errs = best_way(
        graph, given, step, lambda one: pipeline(one, "ort-x86", About()), silent, data=True, seed=0
    )
    return way.name, errs


def test_channels_are_equalized_where_that_errs_less() -> None:
    name, errs = tried(folded(unequal=300.0), inputs(), effort=2)
    assert name == "equalized"
    assert set(errs) == {"as it is", "equalized"}
    assert errs["equalized"] < 0.5 * errs["as it is"]


@pytest.mark.parametrize(("effort", "count"), [(2, 2), (3, 4)])
def test_the_least_error_decides(effort: int, count: int) -> None:
    name, errs = tried(folded(), inputs(4, batches=5), effort=effort)
    assert len(errs) == count
    assert errs[name] == min(errs.values())


def test_rounding_of_the_users_own_is_kept() -> None:
    _, errs = tried(folded(), inputs(), effort=3, weights="quantize-weights{bits=6}")
    assert set(errs) == {"as it is", "equalized"}


def test_too_few_inputs_decide_nothing() -> None:
    assert tried(folded(), inputs(3), effort=3) == ("as it is", {})


def converted(out: Path, effort: int, **options: Any) -> tuple[Report, onnx.ModelProto]:
    torch.manual_seed(0)
    result = normfold.convert(
        perturb(inverted()),
        inputs=(torch.randn(2, 3, 12, 10),),
        output=out,
        quantize="int8",
        effort=effort,
        **{**QUICK, **options},
    )
    assert result.ok
    return result.report, onnx.load(out / "compose.onnx")


def test_what_is_chosen_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once: the passes stand in the report, the integers in the file, and its verdict is of them."""
    both = next(way for way in WAYS if way.passes and way.weights)
    monkeypatch.setattr("normfold.steps.quantize.best_way", lambda *_, **__: (both, {"x": 0.5}))
    report, model = converted(tmp_path, 3)
    names = report.pipeline.split(",")
    assert names.index("equalize") < names.index("quantize-weights{rounding=feedback}")
    assert report.quantization[0].tried == {"x": 0.5}
    feedback = next(p for p in report.passes if p.spec == "quantize-weights{rounding=feedback}")
    assert feedback.rewrites == 5
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 4


def test_usual_effort_tries_nothing(tmp_path: Path) -> None:
    report, _ = converted(tmp_path, 1)
    assert report.quantization[0].tried == {}
    assert "equalize" not in report.pipeline


def test_effort_makes_more_images_and_steps() -> None:
    graph = capture(residual().eval(), (torch.randn(2, 3, 160, 160),))
    assert [image_shapes(graph, 0, effort)[0][0] for effort in (1, 2)] == [16, 32]


def test_norms_that_are_matched_badly_are_named(tmp_path: Path) -> None:
    report, _ = converted(tmp_path, 0, synthesis_steps=1)
    evidence = report.quantization[0].evidence
    assert evidence is not None
    assert evidence.loss is not None
    assert len(evidence.worst) == 3
    assert max(evidence.worst.values()) > evidence.loss
    assert all(site.endswith(".1") for site in evidence.worst)
