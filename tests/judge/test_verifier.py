"""The verdict: passes what is right, fails what is wrong by little, and says what it did not judge."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir import Graph, capture
from normfold.ir.text import graph_text
from normfold.judge import Verifier
from normfold.judge.inputs import KINDS
from normfold.report import Check, OutputCheck
from normfold.targets import RuntimeSession, export_onnx
from tests.judge.nets import FOLDED, UNBAKED, Wrapped, images, nudged, small

EPS = torch.finfo(torch.float32).eps
ALGEBRA_TOLERANCE = 1e-10  # as the README says
ROWS = KINDS[1:]  # of one batch
SINGLE = "x:1x3x6x7"  # the case of a batch of one, of random numbers


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(small(), (images(),))


@pytest.fixture(scope="module")
def verifier(graph: Graph) -> Verifier:
    return Verifier(graph)


@pytest.fixture(scope="module")
def folded(graph: Graph) -> Graph:
    return normfold.run(graph, FOLDED, verify="off")[0]


def scale(verifier: Verifier, row: str) -> float:
    """Largest magnitude of the first output in one row."""
    return float(verifier.reference[0][0][ROWS.index(row)].abs().max())


def test_a_right_rewrite_passes_with_both_errors_per_row(
    graph: Graph, verifier: Verifier, folded: Graph
) -> None:
    check = verifier.rounding(folded)
    assert check
    assert [item.inputs for item in check.outputs] == [*ROWS, SINGLE]
    rows = verifier.cases[0].leaves[0]
    with torch.no_grad():
        exact = small().double()(rows.double())
        own, result = small()(rows), folded(rows)
    for index, item in enumerate(check.outputs[: len(ROWS)]):
        top = exact[index].abs().max()
        assert item.baseline == pytest.approx(float((own[index] - exact[index]).abs().max() / top))
        assert item.error == pytest.approx(float((result[index] - exact[index]).abs().max() / top))
        assert item.tolerance == pytest.approx(4 * item.baseline + 16 * EPS)
        assert item.max_abs == pytest.approx(float((result[index] - exact[index]).abs().max()))
    assert check.max_rel == check.needed_tolerance == max(item.error for item in check.outputs)
    assert 0 < check.max_rel < 1e-5


@pytest.fixture(scope="module")
def wide() -> tuple[Verifier, Graph]:
    """In float64, where a nudge of a parameter can be smaller than the algebra's tolerance."""
    original = capture(small(torch.float64), (images(torch.float64),))
    return Verifier(original), normfold.run(original, UNBAKED, verify="off")[0]


@pytest.fixture(scope="module")
def written(folded: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "net.onnx"
    export_onnx(folded, path)
    return path


def nudged_file(path: Path, name: str, amount: float) -> Path:
    """An ONNX file with ``amount`` added to the first number of a weight."""
    model = onnx.load(path)
    tensor = next(item for item in model.graph.initializer if item.name == name)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[0] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
    changed = path.with_name("nudged.onnx")
    onnx.save(model, changed)
    return changed


@pytest.mark.parametrize("kind", ["algebra", "rounding", "runtime"])
@pytest.mark.parametrize("row", ROWS)
def test_ten_tolerances_on_one_weight_fail_and_a_tenth_does_not(
    kind: str,
    row: str,
    verifier: Verifier,
    folded: Graph,
    wide: tuple[Verifier, Graph],
    written: Path,
) -> None:
    """The last bias shifts its output by itself: by a tenth of what one row allows, and by ten times that."""

    def judge(tolerances: float) -> Check:
        if kind == "algebra":
            judging, graph = wide
            amount = tolerances * ALGEBRA_TOLERANCE * scale(judging, row)
            return judging.algebra(nudged(graph, "last.bias", amount))
        own = next(item for item in verifier.rounding(folded).outputs if item.inputs == row)
        amount = tolerances * own.tolerance * scale(verifier, row)
        if kind == "rounding":
            return verifier.rounding(nudged(folded, "fc.bias", amount))
        path = nudged_file(written, "fc.bias", amount)
        return verifier.outputs("runtime", RuntimeSession(path).run)

    by_row = {item.inputs: item for item in judge(10).outputs}
    assert not by_row[row].ok
    # what is outside its tolerance is judged by more draws of the original's own error, which may allow more
    assert 5 < by_row[row].error / by_row[row].tolerance < 12
    assert {item.inputs: item for item in judge(0.1).outputs}[row].ok
    failing = judge(10)
    assert not failing
    assert failing.needed_tolerance >= by_row[row].error


def test_the_same_file_unchanged_passes(verifier: Verifier, written: Path) -> None:
    for level in ("all", "none"):
        assert verifier.outputs(level, RuntimeSession(written, level).run).ok


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_every_kind_of_input_counts(row: int, verifier: Verifier) -> None:
    """A result that is wrong in one row only fails, there."""

    def spoil(y: Tensor, x: Tensor) -> Tensor:
        if len(x) == 1:
            return y
        inputs = x.flatten(1)
        is_kind = torch.stack(
            [
                inputs.abs().amax(1) > 100,
                (inputs.std(1) == 0) & (inputs[:, 0] != 0),
                inputs.abs().amax(1) == 0,
            ]
        )
        assert int(is_kind.sum()) == len(ROWS)
        return y * torch.where(is_kind[row], 1.001, 1.0)[:, None]

    check = verifier.rounding(Wrapped(small(), spoil))
    assert [item.inputs for item in check.outputs if not item.ok] == [ROWS[row]]
    assert check.worst is not None
    assert check.worst.inputs == ROWS[row]


def test_a_batch_of_one_counts(verifier: Verifier) -> None:
    wrong = Wrapped(small(), lambda y, x: y * (1.001 if len(x) == 1 else 1.0))
    assert [item.inputs for item in verifier.rounding(wrong).outputs if not item.ok] == [SINGLE]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_nan_fails_and_is_what_the_check_reports(row: int, verifier: Verifier) -> None:
    def spoil(y: Tensor, _: Tensor) -> Tensor:
        y = y.clone()
        if len(y) > 1:
            y[row, 2] = math.nan
        return y

    check = verifier.rounding(Wrapped(small(), spoil))
    assert [item.inputs for item in check.outputs if not item.ok] == [ROWS[row]]
    assert math.isnan(check.max_rel)
    assert math.isnan(check.needed_tolerance)
    assert check.worst is not None
    assert check.worst.inputs == ROWS[row]


def test_the_worst_output_is_a_failing_one_even_where_nothing_is_allowed() -> None:
    fine = OutputCheck("a", "random", 0.0, 0.9, 1.0, 0.9)
    wrong = OutputCheck("b", "random", 0.0, 1e-9, 0.0, 1e-9)
    nan = OutputCheck("c", "random", 0.0, math.nan, 1.0, math.nan)
    assert Check("rounding", (fine, wrong)).worst is wrong
    assert Check("rounding", (fine, wrong, nan)).worst is nan
    assert Check("rounding", (fine,)).worst is fine
    assert Check("rounding", ()).worst is None


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda y, _: (y, y), "2 outputs instead of 1"),
        (lambda y, _: (), "0 outputs instead of 1"),
        (lambda y, _: y[:, :4], ""),
        (lambda y, _: y[:2], ""),
        (lambda y, _: y[:, None], ""),
        (lambda y, _: y.sum(), ""),
    ],
)
def test_another_number_or_shape_of_outputs_fails(
    change: object, note: str, verifier: Verifier
) -> None:
    check = verifier.rounding(Wrapped(small(), change))
    assert not check
    assert math.isinf(check.needed_tolerance)
    assert check.note == note


@pytest.mark.parametrize(
    ("of", "other"),
    [
        ("label", torch.int32),
        ("label", torch.float32),
        ("logits", torch.float64),
        ("loss", torch.complex64),
    ],
)
def test_another_type_of_an_output_fails(of: str, other: torch.dtype) -> None:
    module = Named().eval()
    judging = Verifier(capture(module, (images(),)))
    check = judging.rounding(Wrapped(module, lambda y, _: {**y, of: y[of].to(other)}))
    wrong = {item.output: item.inputs for item in check.outputs if not item.ok}
    assert wrong == {of: f"type {str(other).removeprefix('torch.')}"}


def test_how_many_rows_of_a_table_are_read_is_said() -> None:
    module = nn.Sequential(nn.Embedding(90, 4), nn.Linear(4, 2)).eval()
    (note,) = Verifier(capture(module, (torch.arange(10).reshape(2, 5),))).notes
    assert "reads" in note
    assert "of the 90 rows of its table" in note
    module[0] = nn.Embedding(2, 4)
    assert Verifier(capture(module, (torch.tensor([[0, 1], [1, 0]]),))).notes == []


def test_an_overflow_of_the_original_is_noted_and_not_judged() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x)) * 3000  # type: ignore[no-any-return]

    torch.manual_seed(0)
    module = Large().eval().half()
    judging = Verifier(capture(module, (torch.randn(2, 6).half(),)))
    result, report = normfold.run(judging.graph, FOLDED, verifier=judging)
    assert report.ok
    check = judging.rounding(result)
    assert math.isinf(next(o.tolerance for o in check.outputs if o.inputs == "x100"))
    judged = [o.inputs for o in check.outputs if math.isfinite(o.tolerance)]
    assert judged == ["constant", "zeros", "x:1x6"]
    assert check.note == "1 outputs overflow or are NaN in the original: not judged"
    assert not judging.rounding(Wrapped(module, lambda y, _: y * 1.05))


def test_where_nothing_can_be_judged_there_is_no_verdict() -> None:
    module = Wrapped(nn.Linear(3, 2), lambda y, _: y * math.nan).eval()
    judging = Verifier(capture(module, (torch.randn(2, 3),)))
    for check in (judging.rounding(judging.graph), judging.algebra(judging.graph)):
        assert not check
        assert "nothing to judge" in check.note
    half = nn.Linear(2, 1).half()
    with torch.no_grad():
        half.weight.fill_(1.0)
        half.bias.fill_(6e4)
    module = Wrapped(half, lambda y, _: y + 6e4).eval()
    judging = Verifier(capture(module, (torch.randn(2, 2).half(),)))
    check = judging.rounding(judging.graph)
    assert not check
    assert check.note.endswith("rounding alone in the original: nothing to judge")


def test_zero_over_zero_is_not_held_against_a_right_rewrite() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(x / x.norm(dim=1, keepdim=True)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    graph = capture(Unit().eval(), (torch.randn(2, 4),))
    _, report = normfold.run(graph, FOLDED, verify="each")
    assert report.ok
    assert all("NaN" in check.note for check in report.all_checks())
    judging = Verifier(graph)
    assert not judging.rounding(Wrapped(copy.deepcopy(graph.original), lambda y, _: y * 1.001))  # type: ignore[arg-type]


def test_a_weight_that_is_nan_is_noted() -> None:
    first = nn.Linear(4, 3)
    module = nn.Sequential(first, nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        first.weight[0, 0] = math.nan
    graph = capture(module, (torch.randn(2, 4),))
    _, report = normfold.run(graph, FOLDED)
    assert report.ok
    notes = {check.note for check in report.all_checks()}
    assert notes == {"1 outputs hold NaN in the original: not judged there"}
    assert not Verifier(graph).rounding(Wrapped(module, lambda y, _: y * 1.001))


class Named(nn.Module):
    """Outputs of several kinds: a scalar, integers, complex numbers, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.inner(x)
        return {"logits": y, "loss": y.square().sum(), "label": y.argmax(1), "wave": y * 1j}


def test_outputs_of_a_dictionary_are_judged_by_name() -> None:
    module = Named().eval()
    judging = Verifier(capture(module, (images(),)))
    result, report = normfold.run(judging.graph, FOLDED, verifier=judging)
    assert report.ok
    names = [item.output for item in judging.rounding(result).outputs]
    assert names == [
        *["logits"] * 3,
        "loss",
        *["label"] * 3,
        *["wave"] * 3,
        *["logits", "loss", "label", "wave"],
    ]
    for name, change in {"loss": 1.001, "wave": 1.001, "logits": 1.001}.items():

        def spoil(y: dict[str, Tensor], _: Tensor, name: str = name, by: float = change) -> object:
            return {**y, name: y[name] * by}

        check = judging.rounding(Wrapped(module, spoil))
        assert {item.output for item in check.outputs if not item.ok} == {name}
    check = judging.rounding(Wrapped(module, lambda y, _: {**y, "label": (y["label"] + 1) % 5}))
    assert {item.output for item in check.outputs if not item.ok} == {"label"}


def test_a_graph_that_differs_from_its_module_is_detected(graph: Graph) -> None:
    assert Verifier(graph).capture()
    wrong = nudged(graph, "conv.weight", 1e-3)
    check = Verifier(wrong).capture()
    assert check.kind == "capture"
    assert not check
    _, report = normfold.run(wrong, FOLDED)
    assert not report.ok


@pytest.mark.parametrize(
    ("mode", "pipeline", "expected"),
    [
        ("each", FOLDED, ["algebra", "algebra", "algebra", "rounding"]),
        ("final", FOLDED, [None, None, "algebra", "rounding"]),
        ("off", FOLDED, [None, None, None, None]),
        ("final", UNBAKED, [None, None, "algebra"]),
        ("final", "bake", ["rounding"]),
    ],
)
def test_verify_says_where_checks_are_made(
    graph: Graph, mode: str, pipeline: str, expected: list[str | None]
) -> None:
    _, report = normfold.run(graph, pipeline, verify=mode)  # type: ignore[arg-type]
    kinds = [None if item.check is None else item.check.kind for item in report.passes]
    assert kinds == expected
    assert [check.kind for check in report.checks] == ([] if mode == "off" else ["capture"])
    assert all(check.ok for check in report.all_checks())


def test_the_given_graph_and_its_tensors_are_untouched(tmp_path: Path) -> None:
    module = small()
    graph = capture(module, (images(),))
    text, notes = graph_text(graph), list(graph.notes)
    tensors = {name: value.clone() for name, value in graph.module.state_dict().items()}
    addresses = {name: value.data_ptr() for name, value in graph.module.state_dict().items()}
    normfold.run(graph, FOLDED, verify="each")
    normfold.inspect(graph)
    normfold.plan(graph)
    assert normfold.bisect(graph, FOLDED) is None
    assert graph_text(graph) == text
    assert graph.notes == notes
    assert graph.sites == {}
    assert not graph.baked
    now = graph.module.state_dict()
    assert now.keys() == tensors.keys()
    assert all(torch.equal(now[name], value) for name, value in tensors.items())
    assert {name: value.data_ptr() for name, value in now.items()} == addresses
    for name, value in small().state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
