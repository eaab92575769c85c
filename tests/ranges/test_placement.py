"""What integers make slower stays in floats: what is proposed, what is believed, and what is remembered."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir import Graph, capture
from normfold.ir.intervals import Interval, set_range
from normfold.judge.pairs import Pair
from normfold.ops.integers import Plan, plan
from normfold.report import Timing
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.integers import IntegerForms
from normfold.steps import placement
from normfold.steps.slower import Choice, slower_in_integers
from normfold.target import Target, grids_of
from normfold.targets.onnx import export_onnx
from normfold.targets.profile import Profile, profile
from tests.cli.conftest import ROOT
from tests.nets import perturb
from tests.ranges.nets import residual
from tests.timings import timing

pytestmark = pytest.mark.timed
SCHEMA = json.loads((ROOT / "normfold" / "report" / "schema.json").read_text())


class Chain(nn.Module):
    """Four convolutions in a row, a hard swish behind the second: no integer kernel takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.swish, self.relu, self.last = nn.Hardswish(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.last(self.c(self.swish(self.b(self.relu(self.a(x)))))))  # type: ignore[no-any-return]


def planned() -> tuple[Graph, Plan]:
    torch.manual_seed(0)
    graph = capture(perturb(Chain()), (torch.randn(2, 4, 10, 10),))
    graph, _ = run_pipeline(graph, parse("canonicalize,restore,bake,quantize-weights"))
    IntegerForms().run(graph)
    return graph, plan(graph, grids_of("ort-x86"))


def times(conversion: float = 0.0, **layers: float) -> Profile:
    sizes = ((400, conversion),) if conversion else ()
    return Profile({name: 1e-6 * value for name, value in layers.items()}, {}, sizes)


def test_layers_that_are_slower_are_found() -> None:
    graph, found = planned()
    choice = slower_in_integers(
        graph, found, times(a=10, b=10, c=10, d=10), times(1e-7, a=5, b=5, c=5, d=50)
    )
    assert choice.groups == (("d",),)
    assert choice.saves == pytest.approx(40e-6, rel=0.02)
    assert not choice.every


def test_no_layer_stays_in_floats_alone() -> None:
    """onnxruntime puts a convolution between integers on grids by itself, which nobody has simulated."""
    graph, found = planned()
    floats, integers = times(a=10, b=10, c=10, d=10), times(a=5, b=5, c=50, d=5)
    assert slower_in_integers(graph, found, floats, integers).groups == ((("c", "last")),)
    integers = times(a=50, b=5, c=5, d=5)
    assert slower_in_integers(graph, found, floats, integers).groups == (("a", "relu"),)


def test_conversions_have_a_price() -> None:
    """A layer that is a little slower stays between integers, where its neighbours gain; all go if they do not."""
    graph, found = planned()
    floats, price = times(a=10, b=10, c=10, d=10), 5e-6
    alone = slower_in_integers(graph, found, floats, times(price, a=5, b=5, c=12, d=1))
    assert alone.groups == ()
    every = slower_in_integers(graph, found, floats, times(price, a=9, b=9, c=9, d=9))
    assert [layers[0] for layers in every.groups] == ["a", "b", "c", "d"]
    assert every.every


def test_what_kernels_fuse_chooses_together() -> None:
    graph, found = planned()
    floats, integers = times(relu=10, swish=10, d=1), times(a=50, b=1, c=50, d=1)
    choice = slower_in_integers(graph, found, floats, integers)
    assert ("b", "swish") not in choice.groups
    assert any(set(layers) >= {"a", "relu"} for layers in choice.groups)


def test_a_profile_has_the_layers_of_the_network(tmp_path: Path) -> None:
    graph, _ = planned()
    for node in graph.nodes:  # every range is known
        if "val" in node.meta:
            set_range(node, Interval(-4.0, 4.0))
    floats, integers = tmp_path / "floats.onnx", tmp_path / "integers.onnx"
    x = torch.randn(2, 4, 10, 10)
    export_onnx(run_pipeline(capture(Chain(), (x,)), parse("bake"))[0], floats)
    export_onnx(run_pipeline(graph, parse("quantize-activations,bake"))[0], integers)
    before, after = profile(floats, [x]), profile(integers, [x])
    layers = {"a", "b", "c", "d", "swish", "relu", "last"}
    assert before.layers.keys() <= layers
    assert after.layers.keys() >= {"a", "b", "c", "d"}
    assert all(value > 0 for value in (*before.layers.values(), *after.layers.values()))
    assert not [size for size, _ in before.sizes if size > 2 * 4 * 100]
    assert {"b", "swish"} <= after.conversions.keys()
    assert after.conversion(10**6) > after.conversion(1) > 0


Clock = Callable[..., None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Say how each timing ends, in order; the pair runs, so that both files must be there and work."""
    figures: list[tuple[float, float, float]] = []

    def fake(pair: Pair, *_: Any, **__: Any) -> Timing:
        pair.a()
        pair.b()
        return timing(*figures.pop(0))

    monkeypatch.setattr(placement, "measure", fake)
    yield lambda *said: figures.extend(said)
    assert not figures  # every one was asked for


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what is proposed, whatever the profiles are."""

    def set_to(*groups: tuple[str, ...]) -> None:
        monkeypatch.setattr(placement, "slower_in_integers", lambda *_: Choice(groups, 1e9))

    return set_to


@pytest.fixture(autouse=True)
def nothing_proposed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "clock" in request.fixturenames:
        monkeypatch.setattr(placement, "slower_in_integers", lambda *_: Choice((), 0.0))


def converted(out: Path, **options: Any) -> tuple[dict[str, Any], bytes]:
    torch.manual_seed(0)
    given: dict[str, Any] = {"images": 4, "synthesis_steps": 2, "verify": "off", **options}
    result = normfold.convert(
        perturb(residual()),
        inputs=(torch.randn(2, 3, 12, 10),),
        output=out,
        quantize="int8",
        **given,
    )
    assert result.ok
    report = json.loads((out / "compose.report.json").read_text())
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)
    return report["quantization"][0], (out / "compose.onnx").read_bytes()


def count(file: bytes, kind: str) -> int:
    return sum(node.op_type == kind for node in onnx.load_from_string(file).graph.node)


def test_integers_that_are_slower_give_way(tmp_path: Path, clock: Clock) -> None:
    """All of the network stays in floats; a second run writes the same file, and times nothing."""
    clock((1.5, 1.4, 1.6))
    made, file = converted(tmp_path)
    assert count(file, "QuantizeLinear") == 0
    placed = made["placement"]
    assert (placed["whole"], placed["ratio"], placed["reused"]) == (True, 1.5, False)
    assert {"first.0", "second.0", "stem.0"} <= {
        x for item in placed["layers"] for x in item["layers"]
    }
    assert made["activations"] == made["weights"] == 0
    again, same = converted(tmp_path)
    assert again["placement"] == {**placed, "reused": True}
    assert same == file


def test_what_stays_in_floats_is_judged_as_exact(tmp_path: Path, clock: Clock) -> None:
    """Nothing of it is rounded, and nothing says so: neither its pipeline nor its verdict."""
    clock((1.5, 1.4, 1.6))
    converted(tmp_path, verify="final")
    report = json.loads((tmp_path / "compose.report.json").read_text())
    assert "quantize" not in report["pipeline"]
    (made,) = (item for item in report["artefacts"] if item["format"] == "onnx")
    assert made["verdict"]["state"] == "pass"
    assert not [check for check in report["checks"] if "snr_db" in check]
    assert any("in floats, as integers take 1.50" in note for note in report["notes"])


def test_nothing_is_decided_where_the_interval_holds_one(tmp_path: Path, clock: Clock) -> None:
    clock((1.02, 0.97, 1.06))
    made, file = converted(tmp_path)
    assert count(file, "QuantizeLinear") > 0
    assert not made["placement"]["whole"]
    assert made["placement"]["layers"] == []


def test_layers_stay_in_floats_where_that_is_faster(
    tmp_path: Path, clock: Clock, proposed: Callable[..., None]
) -> None:
    proposed(("first.0",), ("second.0",))
    clock((0.8, 0.7, 0.9), (0.9, 0.85, 0.95), (0.72, 0.7, 0.75))
    made, file = converted(tmp_path)
    left = made["placement"]["layers"]
    assert [item["layers"] for item in left] == [["first.0"], ["second.0"]]
    assert all(item["integers"] > 0 for item in left)
    assert made["placement"]["ratio"] == 0.72
    assert (made["integer"]["Conv"], made["floats"]["Conv"]) == (1, 2)
    again, same = converted(tmp_path)
    assert (again["placement"]["reused"], same) == (True, file)


def test_a_proposal_that_is_not_faster_is_not_taken(
    tmp_path: Path, clock: Clock, proposed: Callable[..., None]
) -> None:
    proposed(("first.0",))
    clock((0.8, 0.7, 0.9), (0.99, 0.95, 1.03))
    made, _ = converted(tmp_path)
    assert made["placement"]["layers"] == []
    assert "Conv" not in made["floats"]


def test_another_cut_is_tried_before_the_network_stays_in_floats(
    tmp_path: Path, clock: Clock, proposed: Callable[..., None]
) -> None:
    """A busy moment spoils one profile, and so one cut."""
    proposed(("first.0",))
    whole, better = (1.2, 1.1, 1.3), (0.7, 0.6, 0.8)
    clock(whole, (0.99, 0.95, 1.03), better, better)
    made, file = converted(tmp_path)
    assert [item["layers"] for item in made["placement"]["layers"]] == [["first.0"]]
    assert (made["placement"]["ratio"], made["placement"]["whole"]) == (0.7, False)
    assert count(file, "QuantizeLinear") > 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_timed_is_in_types_that_the_runtime_has(
    half: torch.dtype, tmp_path: Path, clock: Clock
) -> None:
    """ALiBi of Falcon is computed in bfloat16: there was no file; in float16 a slow one was timed."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            slopes = torch.linspace(1, 2, x.shape[-1]).to(half)
            features: Tensor = self.norm(self.a((x.to(half) * slopes).float()))
            return features.relu()

    clock((0.8, 0.7, 0.9))
    torch.manual_seed(0)
    result = normfold.convert(
        perturb(Mixed()),
        inputs=(torch.randn(2, 3, 12, 10),),
        output=tmp_path,
        quantize="int8",
        images=4,
        synthesis_steps=2,
    )
    assert result.ok
    assert not result.report.missing
    assert [item.verdict.state for item in result.report.artefacts] == ["pass"]
    assert count((tmp_path / "mixed.onnx").read_bytes(), "QuantizeLinear") > 0
    file = onnx.load(tmp_path / "mixed.onnx")
    narrow = {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}
    assert not narrow & {x.data_type for x in file.graph.initializer}


@pytest.mark.slow
def test_another_network_or_machine_decides_anew(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock((0.8, 0.7, 0.9), (0.7, 0.6, 0.8), (0.6, 0.5, 0.7))
    assert converted(tmp_path)[0]["placement"]["ratio"] == 0.8
    assert converted(tmp_path, vnni=False)[0]["placement"]["ratio"] == 0.7
    monkeypatch.setattr(placement, "processor", lambda: "another")
    made, _ = converted(tmp_path, vnni=False)
    assert (made["placement"]["ratio"], made["placement"]["reused"]) == (0.6, False)
    monkeypatch.undo()


def test_what_cannot_run_here_takes_what_was_decided_elsewhere(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without such a decision nothing is said of its speed."""
    other = {"target": "ort-arm"} if platform.machine() == "x86_64" else {"target": "ort-x86"}
    assert converted(tmp_path / "first", **other)[0]["placement"] is None
    clock((1.5, 1.4, 1.6))
    with monkeypatch.context() as there:
        there.setattr(Target, "cannot_run", lambda self: "")
        converted(tmp_path / "second", **other)
    made, file = converted(tmp_path / "second", **other)
    assert (made["placement"]["whole"], made["placement"]["reused"]) == (True, True)
    assert count(file, "QuantizeLinear") == 0


@pytest.mark.slow
def test_a_damaged_file_of_facts_is_made_anew(tmp_path: Path, clock: Clock) -> None:
    clock((0.8, 0.7, 0.9), (0.7, 0.6, 0.8))
    converted(tmp_path)
    (tmp_path / "compose.statistics.safetensors").write_bytes(b"no")
    assert converted(tmp_path)[0]["placement"]["ratio"] == 0.7


def test_for_real(tmp_path: Path) -> None:
    """Whatever the times are, the file is the one that they speak for."""
    made, file = converted(tmp_path, verify="final")
    placed = made["placement"]
    assert placed["interval"][0] <= placed["ratio"] <= placed["interval"][1]
    assert placed["whole"] == (count(file, "QuantizeLinear") == 0)
    assert placed["whole"] == (placed["interval"][0] > 1)


def test_nothing_is_timed_where_nobody_wants_it(tmp_path: Path) -> None:
    made, file = converted(tmp_path, keep_if_faster=False)
    assert made["placement"] is None
    assert count(file, "QuantizeLinear") > 0
