"""A result in half precision is judged by a budget, or the verdict says that one is missing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import normfold
from normfold.errors import UsageError
from normfold.judge.half import allowed, half_types
from tests.judge.nets import FOLDED, images, small
from tests.judge.test_budgets import Shrink

X = (images(),)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in float32 and in float16."""
    found = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path_factory.mktemp(precision)
        made = normfold.convert(
            small(), inputs=X, output=folder, export="onnx", precision=precision
        )
        assert made.ok
        found[precision] = made.artifacts[0]
    return found


def test_which_types_a_result_has(files: dict[str, Path], tmp_path: Path) -> None:
    assert half_types(files["fp32"]) == set()
    assert half_types(files["fp16"]) == {"float16"}
    assert half_types(small()) == set()
    assert half_types(small(torch.bfloat16)) == {"bfloat16"}
    assert half_types(normfold.capture(small(torch.float16), (images(torch.float16),))) == {
        "float16"
    }
    (tmp_path / "a.xml").write_text('<data element_type="f16" shape="1" />')
    (tmp_path / "b.xml").write_text('<data element_type="f32" shape="16" />')
    assert half_types(tmp_path / "a.xml") == {"float16"}
    assert half_types(tmp_path / "b.xml") == set()


def test_the_budgets_add_up() -> None:
    assert allowed({"float16"}, None) is None
    assert allowed({"float16"}, 0.02, 0.05) == pytest.approx(0.07)
    assert allowed(set(), None, 0.05) == 0.05
    with pytest.raises(UsageError, match="`--half-budget`: nothing is in half precision"):
        allowed(set(), 0.02)


def test_verify_of_a_file(files: dict[str, Path]) -> None:
    plain = normfold.verify(small(), files["fp16"], X)
    assert not plain.ok
    assert "`--half-budget 0.02`" in plain.note
    right = normfold.verify(small(), files["fp16"], X, half_budget=0.02)
    assert right.ok
    assert {output.tolerance for output in right.outputs} == {0.02}
    assert not normfold.verify(small(), files["fp16"], X, half_budget=1e-5).ok
    assert normfold.verify(small(), files["fp16"], X, max_error=0.02).ok
    with pytest.raises(UsageError, match="nothing is in half precision"):
        normfold.verify(small(), files["fp32"], X, half_budget=0.02)
    assert normfold.verify(small(), files["fp32"], X).note == ""


def test_a_wrong_file_stays_wrong(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["fp16"])
    bias = max(model.graph.initializer, key=lambda item: "bias" in item.name)
    wrong = onnx.numpy_helper.to_array(bias) + 1
    bias.CopyFrom(onnx.numpy_helper.from_array(wrong.astype("float16"), bias.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    assert not normfold.verify(small(), tmp_path / "wrong.onnx", X, half_budget=0.02).ok


def test_verify_of_what_passes_made() -> None:
    graph = normfold.capture(small(), X)
    made, _ = normfold.run(graph, [*normfold.rewrite.parse("canonicalize"), Shrink()], "off")
    assert not normfold.verify(graph, made).ok
    right = normfold.verify(graph, made, max_error=0.1)
    assert (right.ok, right.kind) == (True, "approximation")
    assert not normfold.verify(graph, made, max_error=1e-4).ok


def test_bisect_of_a_file(files: dict[str, Path]) -> None:
    graph = normfold.capture(small(), X)
    plain = normfold.bisect(graph, FOLDED, file=files["fp16"])
    assert plain is not None
    assert plain.file == files["fp16"].name
    assert "`--half-budget 0.02`" in plain.after.note
    assert normfold.bisect(graph, FOLDED, file=files["fp16"], half_budget=0.02) is None
    assert normfold.bisect(graph, FOLDED, file=files["fp16"], half_budget=1e-5) is not None
    for file in (None, files["fp32"]):
        with pytest.raises(UsageError, match="nothing is in half precision"):
            normfold.bisect(graph, FOLDED, file=file, half_budget=0.02)
