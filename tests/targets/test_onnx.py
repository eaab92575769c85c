"""The written file computes what the network computes, for every batch, and holds what it should."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from normfold.errors import ExportError
from normfold.ir import capture
from normfold.targets import RuntimeSession, census, export_onnx
from normfold.targets.tensorrt import build, find
from tests.nets import Compose
from tests.targets.nets import (
    ConvNet,
    Dictionary,
    Kept,
    Transformer,
    Transposed,
    TwoInputs,
    error,
    folded,
    perturb,
    reference,
)

NETS: dict[str, tuple[type[nn.Module], list[tuple[int, ...]]]] = {
    "conv": (ConvNet, [(3, 8, 8)]),
    "transposed": (Transposed, [(4, 5, 5)]),
    "transformer": (Transformer, [(3, 8, 8)]),
    "two-inputs": (TwoInputs, [(4,), (3,)]),
    "dictionary": (Dictionary, [(4,)]),
}


def inputs(shapes: list[tuple[int, ...]], batch: int) -> list[Tensor]:
    return [torch.randn(batch, *shape) for shape in shapes]


@pytest.mark.parametrize("name", NETS)
def test_every_batch_at_both_levels(name: str, tmp_path: Path) -> None:
    kind, shapes = NETS[name]
    net = perturb(kind())
    graph = folded(net, *inputs(shapes, 2))
    exported = export_onnx(graph, tmp_path / "net.onnx")
    onnx.checker.check_model(exported.path, full_check=True)
    assert exported.census.batch_norms == 0
    assert exported.census.per_channel == ()
    assert exported.input_names == graph.input_names
    assert exported.census == census(exported.path)
    assert exported.bytes == exported.path.stat().st_size
    assert exported.notes == ()
    for level in ("all", "none"):
        session = RuntimeSession(exported.path, level, threads=1)
        assert session.input_names == exported.input_names
        assert session.output_names == exported.output_names
        for batch in (1, 2, 5):
            given = inputs(shapes, batch)
            assert error(session.run(given), reference(net, *given)) < 3e-6
    assert all(axes == {0: "batch"} for axes in exported.census.dynamic.values())
    assert len(exported.census.dynamic) == len(session.input_names) + len(session.output_names)


def test_outputs_are_named_after_the_keys_of_a_dictionary(tmp_path: Path) -> None:
    graph = folded(perturb(Dictionary()), torch.randn(2, 4))
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.input_names == ("x",)
    assert exported.output_names == ("logits", "probabilities", "x_out")  # a name is used once


def test_a_convnet_holds_only_its_layers(tmp_path: Path) -> None:
    graph = folded(perturb(ConvNet()), torch.randn(2, 3, 8, 8))
    ops = export_onnx(graph, tmp_path / "net.onnx").census.ops
    assert ops == {"Conv": 2, "Relu": 2, "MaxPool": 1, "ReduceMean": 1, "Reshape": 1, "Gemm": 1}


def test_an_attention_is_four_ops(tmp_path: Path) -> None:
    graph = folded(perturb(Transformer()), torch.randn(2, 3, 8, 8))
    exported = export_onnx(graph, tmp_path / "net.onnx")
    assert exported.opset == 20
    assert exported.census.norms == {"LayerNormalization": 5}
    assert exported.census.ops["Softmax"] == exported.census.ops["Mul"] == 2
    assert exported.census.ops["MatMul"] == 2 * (2 + 4)
    assert "Sqrt" not in exported.census.ops
    assert "Constant" not in exported.census.ops


def test_rms_norms_stay_one_op_where_the_runtime_has_it(tmp_path: Path) -> None:
    net = perturb(Transformer(nn.RMSNorm))
    graph = folded(net, torch.randn(2, 3, 8, 8))
    native = export_onnx(graph, tmp_path / "native.onnx")
    primitive = export_onnx(graph, tmp_path / "primitive.onnx", target="trt")
    assert (native.opset, primitive.opset) == (23, 20)
    assert native.census.norms == {"RMSNormalization": 5}
    assert primitive.census.norms == {}
    x = torch.randn(3, 3, 8, 8)
    for exported in (native, primitive):
        for level in ("all", "none"):
            session = RuntimeSession(exported.path, level, threads=1)
            assert error(session.run([x]), reference(net, x)) < 3e-6


def test_what_could_not_fold_is_counted(tmp_path: Path) -> None:
    net = perturb(Kept())
    x = torch.randn(2, 3, 4, 4)
    exported = export_onnx(folded(net, x), tmp_path / "net.onnx")
    assert exported.census.batch_norms + len(exported.census.per_channel) > 0
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6


def test_fixed_sizes_stay_fixed(tmp_path: Path) -> None:
    exported = export_onnx(
        folded(perturb(ConvNet()), torch.randn(1, 3, 8, 8), dynamic=None), tmp_path / "net.onnx"
    )
    assert exported.census.dynamic == {}


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    net = perturb(TwoInputs())
    given = [torch.randn(3, 4).half(), torch.randn(3, 3).half()]
    graph = folded(net.half(), *given)
    exported = export_onnx(graph, tmp_path / "net.onnx")
    results = RuntimeSession(exported.path, threads=1).run(given)
    assert all(result.dtype == torch.float16 for result in results)
    assert error(results, reference(net.float(), *given)) < 4e-3


@pytest.mark.parametrize("kind", [nn.Hardswish, nn.Mish])
def test_activations_that_tensorrt_has_not_in_bfloat16(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Linear(8, 8), kind(), nn.Linear(8, 8))
    x = torch.randn(2, 8)
    for dtype, casts in ((torch.float16, 0), (torch.bfloat16, 2)):
        graph = folded(net.to(dtype), x.to(dtype))
        path = export_onnx(graph, tmp_path / "net.onnx", target="trt-rtx").path
        model = onnx.load(path)
        assert sum(node.op_type == "Cast" for node in model.graph.node) == casts
        # torch translates it by a function: what it inlines is the module's all the same
        assert {"1/HardSwish", "1/Mish"} & {node.name for node in model.graph.node}
        taken = x.to(dtype).view(torch.int16).numpy()
        feed = {"input": taken.view("float16" if not casts else ml_dtypes.bfloat16)}
        outputs: Any = ReferenceEvaluator(model).run(None, feed)
        assert (
            error([torch.from_numpy(outputs[0].astype("float32"))], reference(net.float(), x))
            < 0.05
        )
        backend = find("tensorrt-rtx") if find_spec("tensorrt_rtx") else None
        if backend is not None:
            assert build(path, backend, profile={"input": ((1, 8), (2, 8), (4, 8))}).plan


def test_clamps_of_one_side_do_not_make_tensorrt_print(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            parts = (
                x.clamp(min=0.5),
                x.clamp(max=0.25),
                x.clamp_min(1),
                x.clamp_max(-1),
                x.clamp(-2, 2),
            )
            return torch.cat(parts, 1)

    x = torch.randn(2, 8).half()
    exported = export_onnx(folded(Clamped(), x), tmp_path / "net.onnx", target="trt-rtx")
    ops = exported.census.ops
    assert (ops["Max"], ops["Min"], ops.get("Clip", 0)) == (3, 3, 0)
    (result,) = RuntimeSession(exported.path, threads=1).run([x])
    assert torch.equal(result, Clamped()(x))
    if find_spec("tensorrt_rtx"):
        backend = find("tensorrt-rtx")
        assert backend is not None
        capfd.readouterr()
        build(exported.path, backend, profile={"x": ((1, 8), (2, 8), (4, 8))})
        assert capfd.readouterr().out == ""


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1024, 16)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.table(ids)), self.table.weight)

    net = Tied()
    ids = torch.randint(0, 1024, (2, 7))
    exported = export_onnx(folded(net, ids), tmp_path / "net.onnx")
    assert exported.bytes < 2 * 1024 * 16 * 4
    results = RuntimeSession(exported.path, threads=1).run([ids])
    assert error(results, reference(net, ids)) < 3e-6


def test_global_pooling_of_channels_last_is_a_mean(tmp_path: Path) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(torch.sigmoid(x).permute(0, 3, 1, 2), 1)

    net, x = Last(), torch.randn(3, 4, 5, 6)
    exported = export_onnx(folded(net, x), tmp_path / "net.onnx")
    assert exported.census.ops == {"Sigmoid": 1, "Transpose": 1, "ReduceMean": 1}
    assert error(RuntimeSession(exported.path, threads=1).run([x]), reference(net, x)) < 3e-6


def test_complex_numbers_are_named(tmp_path: Path) -> None:
    class Rotated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            turn = torch.polar(torch.ones_like(x[0]), x[0]).unsqueeze(0)
            return torch.view_as_real(turn * torch.complex(x, x)).flatten(-2)

    graph = capture(Rotated(), (torch.randn(2, 4),))
    with pytest.raises(ExportError, match="complex numbers") as caught:
        export_onnx(graph, tmp_path / "net.onnx")
    assert "`polar`" in str(caught.value)


class Pooled(nn.Module):
    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.body, self.pool = nn.Conv2d(3, 4, 3, padding=1), pool

    def forward(self, x: Tensor) -> Any:
        return self.pool(self.body(x))


def free(net: nn.Module, *axes: int) -> Any:
    dynamic = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    return capture(net, (torch.randn(2, 3, 12, 16),), dynamic=(dynamic,))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.adaptive_avg_pool2d(x, (2, 5)),
        lambda x: F.adaptive_avg_pool2d(x, (3, 1)).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, (None, 2)),
        lambda x: F.adaptive_avg_pool2d(x, (x.shape[3], x.shape[2])),
        lambda x: F.adaptive_avg_pool1d(x.mean(2), 6),
        lambda x: F.adaptive_avg_pool3d(x, (3, 2, 1)),
        lambda x: F.adaptive_max_pool2d(x, 1),
    ],
)
def test_pools_of_free_sizes_take_each_size(pool: Any, tmp_path: Path) -> None:
    net = Pooled(pool).eval()
    exported = export_onnx(free(net, 2, 3), tmp_path / "net.onnx")
    session = RuntimeSession(exported.path, threads=1)
    for sizes in ((12, 16), (2, 3), (5, 4), (7, 33), (19, 2)):
        x = torch.randn(2, 3, *sizes)
        assert error(session.run([x]), reference(net, x)) < 3e-6


def test_maxima_of_parts_of_a_free_axis_are_refused(tmp_path: Path) -> None:
    net = Pooled(lambda x: F.adaptive_max_pool2d(x, (2, 1)))
    export_onnx(free(net, 3), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="`adaptive_max_pool2d` over an axis") as caught:
        export_onnx(free(net, 2), tmp_path / "other.onnx")
    assert "test_onnx.py" in str(caught.value.where)
    assert "--dynamic" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("linalg_inv", lambda net, x: torch.linalg.inv(net.fc(x) + 9 * torch.eye(4))),
        ("cumprod", lambda net, x: net.fc(x).cumprod(-1)),
        ("isin", lambda net, x: torch.isin(net.fc(x), torch.ones(2)).float()),
    ],
)
def test_an_op_without_a_form_is_named_as_the_user_wrote_it(
    name: str, forward: Any, tmp_path: Path
) -> None:
    """The exporter fails at a part of it, which it has decomposed in a copy of its own."""
    net = Compose(forward, fc=nn.Linear(4, 4)).eval()
    with pytest.raises(ExportError, match=f"no form in ONNX for `{name}`") as caught:
        export_onnx(capture(net, (torch.randn(2, 4, 4),)), tmp_path / "m.onnx")
    assert "forward" in str(caught.value.where) or "nets.py" in str(caught.value.where)
