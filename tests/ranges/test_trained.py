"""What tells good ranges from bad ones on a trained network; 8 bits alone forgive almost anything."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import normfold
from examples import accuracy, shapes
from examples.prepbn import MODELS
from normfold.domains.observed import measure
from normfold.ir import Graph
from normfold.ir.graph import op_name
from normfold.ir.intervals import range_of
from normfold.job import Quantize, Source
from normfold.job.presets import preset
from normfold.ranges.calibration import calibrate
from normfold.ranges.ranges import distance
from normfold.report.quantization import QuantizationReport
from normfold.steps.quantize import make_integers

pytestmark = pytest.mark.slow
OPTIONS = Quantize("int8", images=64, synthesis_steps=60)
JUDGED = 1000


class Network:
    """The trained network, and how many test images an integer version of it gets right."""

    def __init__(self, module: nn.Module) -> None:
        images, labels = shapes.train_set(256)
        self.real, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.pixels = (float(self.real.min()), float(self.real.max()))
        captured = normfold.capture(module, (self.real[:2],))
        self.graph, _ = normfold.run(captured, preset("folded"), verify="off")
        test, right = shapes.test_set()
        self.test, self.right = torch.from_numpy(test[:JUDGED]), torch.from_numpy(right[:JUDGED])

    def options(self, **changes: Any) -> Quantize:
        return replace(OPTIONS, pixels=self.pixels, **changes)

    def accuracy(self, graph: Graph) -> float:
        with torch.no_grad():
            answers = torch.cat([graph.module(x) for x in self.test.split(250)])
        return 100 * float((answers.argmax(1) == self.right).float().mean())

    def made(self, options: Quantize, data: Any = None) -> tuple[float, QuantizationReport]:
        calibrated = calibrate(self.graph, options, Source(data=data))
        graph, _, report, _ = make_integers(calibrated, options, "ort-x86", data=data is not None)
        return self.accuracy(graph), report


@pytest.fixture(scope="module")
def mobilenet() -> Network:
    return Network(accuracy.load(MODELS / "mobilenet_v2_small.pt"))


def test_ranges_are_nearer_to_those_of_real_images(mobilenet: Network) -> None:
    """Below 0.6 of the analytic ones' distance, 0.5 of noise's."""
    found = {}
    rows = [(x,) for x in mobilenet.real.split(64)]
    real = {node.name: item.interval for node, item in measure(mobilenet.graph, rows).items()}
    for evidence in ("synthetic", "analytic", "noise"):
        options = mobilenet.options(evidence=evidence, clip_ranges=False)
        calibrated = calibrate(mobilenet.graph, options)
        made, *_ = make_integers(calibrated, options, "ort-x86")
        names = {str(node.args[0]) for node in made.nodes if op_name(node) == "normfold::quantize"}
        known = {n.name: range_of(n) for n in calibrated.graph.nodes if n.name in names}
        found[evidence] = distance({name: item for name, item in known.items() if item}, real)
    assert found["synthetic"] < 0.6 * found["analytic"]
    assert found["synthetic"] < 0.5 * found["noise"]


def test_four_bits(mobilenet: Network) -> None:
    """With clipped ranges and weights within 2 points of real images, and 3 above plain rounding."""
    best = "quantize-weights{bits=4 rounding=squant clip=true}"
    low: dict[str, Any] = {"activation_bits": 4, "weights": best, "correct_bias": True}
    ours, _ = mobilenet.made(mobilenet.options(evidence="synthetic", **low))
    real, _ = mobilenet.made(mobilenet.options(**low), (mobilenet.real, mobilenet.labels))
    plain: dict[str, Any] = {"activation_bits": 4, "weights": "quantize-weights{bits=4}"}
    plain["correct_bias"] = False
    rounded, _ = mobilenet.made(mobilenet.options(evidence="synthetic", clip_ranges=False, **plain))
    assert ours > real - 2
    assert ours > rounded + 3


def test_three_bits_of_weights(mobilenet: Network) -> None:
    """Errors that cancel and corrected biases, against plain rounding."""
    rounded = mobilenet.options(weights="quantize-weights{bits=3}", correct_bias=False)
    plain, _ = mobilenet.made(rounded)
    squant = "quantize-weights{bits=3 rounding=squant}"
    better, _ = mobilenet.made(mobilenet.options(weights=squant, correct_bias=True))
    assert better > plain + 4


@pytest.mark.parametrize(("factor", "better"), [(4, 7), (8, 10)])
def test_statistics_that_lie(mobilenet: Network, factor: int, better: float) -> None:
    """Deviations and gains of a fraction: the same function, and statistics of another one."""
    module = copy.deepcopy(accuracy.load(MODELS / "mobilenet_v2_small.pt"))
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            norm.running_var /= factor**2
            norm.weight.data /= factor
            norm.eps /= factor**2
    lying = Network(module)
    assert abs(lying.accuracy(lying.graph) - mobilenet.accuracy(mobilenet.graph)) < 0.2
    together, report = lying.made(lying.options())
    alone, _ = lying.made(lying.options(evidence="analytic"))
    assert together > alone + better
    assert any("the statistics of the norms are not matched" in text for text in report.warnings)
    assert report.confidence is not None
    assert report.confidence.score < report.confidence.TRUSTED


@pytest.mark.parametrize("name", ["mobilenet_v2_small.pt", "resnet20.pt"])
def test_honest_networks_raise_no_warning(name: str) -> None:
    network = Network(accuracy.load(MODELS / name))
    accuracy_, report = network.made(network.options(synthesis_steps=25))
    assert report.warnings == []
    assert report.confidence is not None
    assert report.confidence.score > report.confidence.TRUSTED
    assert accuracy_ > network.accuracy(network.graph) - 1.0


def test_activations_really_are_on_grids(mobilenet: Network) -> None:
    """Ranges of noise that is ten times too small cost accuracy."""
    quiet = 0.1 * torch.randn(256, *mobilenet.real.shape[1:], generator=_seeded())
    found, _ = mobilenet.made(mobilenet.options(), quiet)
    assert found < mobilenet.accuracy(mobilenet.graph) - 5


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
