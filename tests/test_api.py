"""The facade that others build on: names, signatures, results, and gradients through the un-baked graph."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.judge import Verifier
from normfold.progress import Progress
from normfold.report import Check, Report
from tests.judge.nets import FOLDED, UNBAKED, Wrapped, images, small
from tests.nets import Encoder, RepBlock, Residual, perturb

NAMES = {
    "EngineOptions",
    "Graph",
    "Job",
    "Pass",
    "Progress",
    "Quantize",
    "Reason",
    "Report",
    "Result",
    "Train",
    "bench",
    "bisect",
    "capture",
    "convert",
    "execute",
    "finalize",
    "inspect",
    "layers",
    "plan",
    "refresh_statistics",
    "replace_norms",
    "run",
    "tune",
    "verify",
}


def test_the_public_names() -> None:
    assert set(normfold.__all__) == NAMES
    for name in NAMES:
        assert getattr(normfold, name).__module__.startswith("normfold.")
    with pytest.raises(AttributeError, match="has no attribute `fold`"):
        normfold.fold  # noqa: B018


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("capture", "(module, args=(), kwargs=None, dynamic='batch')"),
        ("run", "(graph, pipeline, verify='final', *, verifier=None, progress=None, copy=True)"),
        (
            "verify",
            "(original, result, inputs=(), *, tries=(), half_budget=None, max_error=None, **options)",
        ),
        ("layers", "(original, result, inputs=(), **options)"),
        (
            "bisect",
            "(graph, pipeline, *, verifier=None, progress=None, file=None, export=False, reproducer=None, "
            "max_error=None, half_budget=None)",
        ),
        ("inspect", "(graph)"),
        ("plan", "(graph, pipeline=None, to='folded')"),
    ],
)
def test_the_signatures(name: str, expected: str) -> None:
    signature = inspect.signature(getattr(normfold, name))
    plain = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == expected


def test_capture_gives_a_callable_graph() -> None:
    module = small()
    graph = normfold.capture(module, (images(),))
    assert isinstance(graph, Graph)
    assert isinstance(graph.module, fx.GraphModule)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 6, 7)
        assert torch.equal(graph(x), module(x))
        assert torch.equal(graph.module(x), module(x))
    named = normfold.capture(module, (), {"x": images()}, dynamic=None)
    assert torch.equal(named(x=images()), module(images()))


def test_run_gives_a_new_graph_and_a_report() -> None:
    module = small()
    graph = normfold.capture(module, (images(),))
    result, report = normfold.run(graph, FOLDED, verify="each")
    assert isinstance(report, Report)
    assert result is not graph
    assert result.module is not graph.module
    assert report.ok is True
    assert report.why("norm") == "norm: fold-affine: backward"
    assert report.to_json().startswith('{\n  "schema": 2,\n  "ok": true,')
    torch.testing.assert_close(result(images()), module(images()))
    with pytest.raises(UsageError, match="`verify` is `final`, `each`, `strict` or `off`"):
        normfold.run(graph, FOLDED, verify="sometimes")  # type: ignore[arg-type]


def test_run_takes_passes_and_tells_its_progress() -> None:
    from normfold.passes.canonicalize import Canonicalize
    from normfold.passes.fold_affine import FoldAffine

    graph = normfold.capture(small(), (images(),))
    said: list[Progress] = []
    passes = [Canonicalize(), FoldAffine(direction="backward")]
    _, report = normfold.run(graph, passes, progress=said.append)
    assert report.pipeline == "canonicalize,fold-affine{direction=backward}"
    assert str(said[0]) == "checking the capture"
    assert said[-1] == Progress("fold-affine{direction=backward}", 2, 2, "2 rewrites, 0 declined")


def test_convert_gives_the_files(tmp_path: Path) -> None:
    module = small().train()
    result = normfold.convert(
        module, to="folded", export="onnx", output=tmp_path / "out", inputs=(images(),)
    )
    assert isinstance(result, normfold.Result)
    assert result.ok
    assert result.artifacts == [tmp_path / "out" / "small.onnx"]
    (made,) = result.report.artefacts
    assert made.path == str(result.artifacts[0])
    assert made.verdict.state == "pass"
    assert made.size == result.artifacts[0].stat().st_size
    assert module.training  # the caller's own is as it was
    torch.testing.assert_close(result.graph(images()), small()(images()))
    check = normfold.verify(small(), result, inputs=(images(),))
    assert check
    assert normfold.verify(small(), result.artifacts[0], inputs=(images(),)).kind.startswith("onnx")
    rewritten = normfold.convert(
        small(), passes=UNBAKED, export=None, output=tmp_path / "none", inputs=(images(),)
    )
    assert rewritten.artifacts == []
    assert not (tmp_path / "none").exists()
    assert not rewritten.graph.baked


def test_verify_gives_a_check() -> None:
    module = small()
    graph = normfold.capture(module, (images(),))
    result, _ = normfold.run(graph, FOLDED, verify="off")
    check = normfold.verify(module, result, inputs=(images(),))
    assert isinstance(check, Check)
    assert bool(check) is check.ok is True
    assert 0 <= check.max_rel <= 1e-5
    assert check.needed_tolerance == check.max_rel
    wrong = normfold.verify(graph, Wrapped(module, lambda y, _: y * 1.001))
    assert bool(wrong) is wrong.ok is False
    assert wrong.needed_tolerance == pytest.approx(1e-3, rel=1e-3)


def test_the_users_own_tensors_are_judged() -> None:
    own = torch.full((2, 3, 6, 7), 3.0)

    def spoil(y: Tensor, x: Tensor) -> Tensor:
        return y * (1.01 if torch.equal(x, own) else 1.0)

    for original in (small(), normfold.capture(small(), (images(),))):
        assert normfold.verify(original, small(), inputs=(own,))
        check = normfold.verify(original, Wrapped(small(), spoil), inputs=(own,))
        assert {item.inputs for item in check.outputs if not item.ok} == {"sample 0"}


def test_convert_judges_the_users_own_tensors(tmp_path: Path) -> None:
    result = normfold.convert(small(), output=tmp_path, inputs=(images(),), export="onnx")
    cases = {
        item.inputs
        for check in result.report.checks
        if isinstance(check, Check)
        for item in check.outputs
    }
    assert "sample 0" in cases


def test_verify_takes_a_graph_module_and_a_module_in_train_mode() -> None:
    module = small()
    graph = normfold.capture(module, (images(),))
    result, _ = normfold.run(graph, FOLDED, verify="off")
    assert normfold.verify(graph, result.module)
    training = copy.deepcopy(module).train()
    before = copy.deepcopy(training.state_dict())
    assert normfold.verify(graph, training)
    assert training.training
    assert all(torch.equal(training.state_dict()[name], value) for name, value in before.items())


def test_a_nan_in_the_file_is_the_verdict_whatever_the_other_level_says(tmp_path: Path) -> None:
    from normfold.api import _excess
    from normfold.report import OutputCheck

    def check(error: float) -> Check:
        return Check("onnxruntime", (OutputCheck("y", "random", 0.0, error, 1e-6, error),))

    for checks in ([check(0.5), check(float("nan"))], [check(float("nan")), check(0.5)]):
        assert max(checks, key=_excess).max_rel != max(checks, key=_excess).max_rel
    assert max([check(1e-9), check(0.5)], key=_excess).max_rel == 0.5


class Decorated(nn.Module):
    """Weight norm, a linear behind a BN, and a shared convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.before, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv(x)))
        y = F.silu(self.norm2(self.conv(y)))
        return self.fc(self.before(y.mean((2, 3))))  # type: ignore[no-any-return]


TRAINED = {
    "residual": (Residual, (2, 4, 6, 7)),
    "rep": (RepBlock, (2, 4, 6, 7)),
    "decorated": (Decorated, (2, 4, 6, 7)),
    "encoder": (Encoder, (2, 5, 8)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_through_the_folded_graph_are_those_of_the_original(name: str) -> None:
    """Un-baked is trainable: every parameter, BN gains and biases included, as in eval mode."""
    kind, shape = TRAINED[name]
    torch.manual_seed(0)
    original = perturb(kind().double())
    tuned = copy.deepcopy(original)
    graph = normfold.capture(tuned, (torch.randn(shape, dtype=torch.float64),))
    folded, report = normfold.run(graph, UNBAKED, verify="off")
    assert {status.state for status in report.sites} <= {"gone", "kept"}
    assert not any("batch_norm" in str(node.target) for node in folded.nodes)
    x = torch.randn(shape, dtype=torch.float64)
    weights = torch.randn_like(original(x))
    (original(x) * weights).sum().backward()
    (folded(x) * weights).sum().backward()
    expected = dict(original.named_parameters())
    got = dict(tuned.named_parameters())
    assert expected.keys() == got.keys()
    for path, parameter in expected.items():
        assert parameter.grad is not None, path
        own = got[path].grad
        assert own is not None, path
        assert parameter.grad.abs().max() > 0, path
        error = (own - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error <= 1e-9, f"{path}: {float(error):.1e}"


def test_a_step_on_the_folded_graph_is_a_step_on_the_network() -> None:
    module = small(torch.float64)
    graph = normfold.capture(module, (images(torch.float64),))
    folded, _ = normfold.run(graph, UNBAKED, verify="off")
    before = module(images(torch.float64))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    folded(images(torch.float64)).square().sum().backward()
    optimizer.step()
    after = module(images(torch.float64))
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(folded(images(torch.float64)), after)
    assert Verifier(graph).algebra(folded)
