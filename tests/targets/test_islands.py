"""What half precision cannot hold stays in float32, is reported, and is all that does.

The judge of the files is onnx's ReferenceEvaluator. Its LayerNormalization and RMSNormalization ignore
``stash_type`` and compute in the type of their input: with numpy 2 a scalar does not widen float16, so squares
are float16 and overflow at 256 (``test_the_judge_computes_norms_in_half_precision``). The sum of squares is in
float16 too for LayerNormalization; for RMSNormalization numpy's mean of float16 sums in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.job.presets import preset
from normfold.judge import Verifier
from normfold.report import Check
from normfold.rewrite import parse, run_pipeline
from normfold.targets import export_onnx
from tests.nets import perturb
from tests.targets.halves import Lowered, lowered, x
from tests.targets.nets import Transformer

BUDGET = 0.02
HALF = torch.float16


# -- the residual stream of a vision transformer ----------------------------------------------------


def loud(scale: float = 400.0) -> nn.Module:
    """A pre-norm ViT, the same function whatever ``scale``, by which its residual stream is multiplied."""
    net = perturb(Transformer())
    with torch.no_grad():
        for name, value in net.named_parameters():
            if (
                name.startswith(("patch", "token", "position"))
                or ".out." in name
                or ".fc2." in name
            ):
                value.mul_(scale)
    return net


def evaluated(graph: Graph, verifier: Verifier, path: Path) -> Check:
    """The verdict on the file, computed in the types of the file."""
    exported = export_onnx(graph, path, target="trt-rtx")
    session = ReferenceEvaluator(str(path))

    def run(leaves: Any) -> list[Tensor]:
        feeds = dict(zip(exported.input_names, (leaf.numpy() for leaf in leaves), strict=True))
        with np.errstate(all="ignore"):
            return [torch.from_numpy(np.asarray(y)) for y in session.run(None, feeds)]

    return verifier.outputs("reference", run, BUDGET)


@pytest.mark.parametrize("to", [pytest.param("layer_norm", marks=pytest.mark.slow), "rms_norm"])
def test_a_stream_whose_squares_overflow(to: str, tmp_path: Path) -> None:
    net = loud()
    images = x(2, 3, 8, 8)
    pipeline = preset("rmsnorm") if to == "rms_norm" else "canonicalize,restore,bake"
    graph = capture(net, (images,))
    rewritten, _ = run_pipeline(graph, parse(pipeline))
    found = lowered(rewritten)
    verifier = Verifier(graph)
    reported = {island.site: (island.op, island.why) for island in found.typed.islands}
    assert set(reported) >= {f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)} | {"norm"}
    assert {op for op, _ in reported.values()} == {to}
    assert all("squares up to" in why for _, why in reported.values())
    assert evaluated(found.typed.graph, verifier, tmp_path / "net.onnx")
    assert verifier.half("float16", found.typed.graph, BUDGET)

    without = lowered(rewritten, islands=False)
    assert without.typed.islands == ()
    check = evaluated(without.typed.graph, verifier, tmp_path / "without.onnx")
    assert not check
    assert check.worst is not None
    assert not check.worst.error < 0.5
    assert not verifier.half("float16", without.typed.graph, BUDGET)


@pytest.mark.parametrize("to", [pytest.param("layer_norm", marks=pytest.mark.slow), "rms_norm"])
def test_the_same_network_at_an_ordinary_scale_has_no_islands(to: str, tmp_path: Path) -> None:
    pipeline = preset("rmsnorm") if to == "rms_norm" else "canonicalize,restore,bake"
    graph = capture(loud(1.0), (x(2, 3, 8, 8),))
    found = lowered(run_pipeline(graph, parse(pipeline))[0])
    assert found.islands == []
    assert len(found.casts()) == 2
    verifier = Verifier(graph)
    assert evaluated(found.typed.graph, verifier, tmp_path / "net.onnx")


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_the_judge_computes_norms_in_half_precision(op: str) -> None:
    node = helper.make_node(op, ["x", "gain"], ["y"], axis=-1, epsilon=1e-6)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)
        for name, shape in (("x", [1, 4]), ("gain", [4]), ("y", [1, 4]))
    ]
    graph = helper.make_graph([node], "norm", tensors[:2], tensors[2:])
    opsets = [helper.make_opsetid("", 23)]
    session = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets, ir_version=11))
    results = {}
    for scale in (100, 300):
        values = scale * np.array([[1, -1, 1, -1]], dtype=np.float16)
        with np.errstate(all="ignore"):
            found = session.run(None, {"x": values, "gain": np.ones(4, np.float16)})
        (y,) = map(np.asarray, found)
        assert y.dtype == np.float16
        results[scale] = y.tolist()
    assert results[100] == [[1, -1, 1, -1]]
    assert results[300] == [[0, 0, 0, 0]]  # divided by infinity


# -- one reason at a time ---------------------------------------------------------------------------


class Around(nn.Module):
    """Something between two linear layers, at a scale that the second undoes."""

    def __init__(self, inner: Any, scale: float = 1.0, channels: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, channels), nn.Linear(8, 4)
        self.inner, self.scale = inner, scale
        perturb(self.first)
        with torch.no_grad():
            self.first.weight.mul_(scale)
            self.first.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(self.first(x)))
        return y


class Channels(nn.Module):
    """A norm of (batch, channels, tokens), for (batch, tokens, channels)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


SQUARES: dict[str, tuple[Any, str]] = {
    "layer": (lambda: nn.LayerNorm(8), "layer_norm"),
    "rms": (lambda: nn.RMSNorm(8), "rms_norm"),
    "group": (lambda: Channels(nn.GroupNorm(2, 8)), "group_norm"),
    "instance": (lambda: Channels(nn.InstanceNorm1d(8, affine=True)), "instance_norm"),
    "length": (
        lambda: lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        "linalg_vector_norm",
    ),
    "deviation": (lambda: lambda x: x / x.std(-1, keepdim=True), "std"),
    "variance": (lambda: lambda x: x / (x.var(-1, keepdim=True) + 1).sqrt(), "var"),
    "by-hand": (lambda: lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1).rsqrt(), "pow"),
    "product": (lambda: lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(), "mul"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] if name in ("group", "instance", "length") else []
        )
        for name in SQUARES
    ],
)
def test_squares(name: str) -> None:
    make, op = SQUARES[name]
    given = x(2, 6, 8)
    inner = make()
    inner = perturb(inner) if isinstance(inner, nn.Module) else inner
    quiet = lowered(Around(inner, 10.0), given, inputs=[(given,)], pipeline="bake")
    assert quiet.islands == []
    assert quiet.error(given) < 5e-3
    found = lowered(Around(inner, 500.0), given, pipeline="bake")
    assert op in found.islands
    assert found.dtype(op) == {torch.float32}
    assert found.dtype("linear") == {HALF}
    assert found.error(given) < 5e-3
    without = lowered(found.graph, islands=False)
    assert not without.error(given) < 0.1


def test_values_beyond_a_quarter_of_the_largest() -> None:
    """The activations of a large MLP: its hidden layer, and what reads it."""
    net = Around(lambda x: torch.relu(x) / 40000, 40000.0)
    given = x(2, 6, 8)
    found = lowered(net, given)
    assert set(found.islands) == {"linear", "relu", "div"}
    assert found.islands.count("linear") == 1  # the last reads small values again
    assert found.error(given) < 5e-3
    quiet = lowered(Around(lambda x: torch.relu(x) / 400, 400.0), given)
    assert quiet.islands == []
    assert quiet.error(given) < 5e-3


def test_only_bfloat16_holds_large_values() -> None:
    net = Around(lambda x: torch.relu(x) / 40000, 40000.0)
    found = lowered(net, x(2, 6, 8), dtype=torch.bfloat16)
    assert found.islands == []
    assert found.error(x(2, 6, 8)) < 3e-2


def test_large_inputs_are_read_in_float32() -> None:
    net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net[0].running_var.fill_(1e12)  # type: ignore[operator]
    given = x(6, 8) * 1e6
    found = lowered(net, given, inputs=[(given,)])
    assert found.islands == ["batch_norm"]
    assert "reads values up to" in next(iter(found.why.values()))
    assert found.error(given) < 5e-3


def test_large_weights_stay_in_float32() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        net[1].weight.mul_(1e6)  # type: ignore[operator]
        net[0].weight.mul_(1e-6)  # type: ignore[operator]
        net[0].bias.mul_(1e-6)  # type: ignore[operator]
    # what the first makes is too small for float16, and that no magnitude shows: the verdict would
    found = lowered(net, x(6, 8), keep=["0"])
    assert found.islands == ["linear", "linear"]
    assert found.stored() == dict.fromkeys(
        ("0.weight", "0.bias", "1.weight", "1.bias"), torch.float32
    )
    assert found.error(x(6, 8)) < 1e-5


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_power_next_to_zero(norm: Any) -> None:
    """Subnormal in float16: three digits at most, and zero on hardware that flushes them."""
    inner = norm(8, eps=1e-12)
    given = x(2, 6, 8)
    found = lowered(Around(inner, 1e-3), given)
    assert found.islands == ["layer_norm" if norm is nn.LayerNorm else "rms_norm"]
    assert all("divides by the root of" in why for why in found.why.values())
    assert found.error(given) < 5e-3
    assert lowered(Around(inner, 1.0), given).islands == []
    assert lowered(found.graph, dtype=torch.bfloat16).islands == []


NUMBERS = {
    "mul": (lambda x: x * 1e5, 1e-4),
    "mul-int": (lambda x: x * 100000, 1e-4),
    "div": (lambda x: x / 1e5, 1e3),
    "div-int": (lambda x: x / 100000, 1e3),
    "div-tiny": (lambda x: x / 1e-6, 1e-5),
    "mul-tiny": (lambda x: x * 1e-6, 1e3),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_do_not_fit_are_computed_with_in_float32(name: str) -> None:
    function, scale = NUMBERS[name]
    given = x(2, 6, 8)
    found = lowered(Around(function, scale), given)
    assert found.islands == [name.split("-")[0]]
    assert all("computes with" in why for why in found.why.values())
    near = 5e-3 if scale > 1e-4 else 0.05  # values of 1e-5 have few digits
    assert found.error(given) < (0.5 if name == "mul-tiny" else near)


def test_what_keeps_from_zero_is_not_rounded_to_zero() -> None:
    for function in (
        lambda x: x / (x.abs().amax(-1, keepdim=True) + 1e-12),
        lambda x: nn.functional.normalize(x, dim=-1),
        lambda x: (x.abs() + 1e-10).log(),
    ):
        found = lowered(Around(function), x(2, 6, 8))
        assert found.islands == []
        assert found.error(x(2, 6, 8)) < 5e-3
        with torch.no_grad():
            found.typed.graph.module.first.weight.zero_()  # type: ignore[union-attr,operator]
            found.typed.graph.module.first.bias.zero_()  # type: ignore[union-attr,operator]
        assert all(bool(y.isfinite().all()) for y in found.run(x(2, 6, 8)))


def test_an_island_costs_two_casts() -> None:
    found: Lowered = lowered(Around(nn.LayerNorm(8), 500.0), x(2, 6, 8))
    assert found.islands == ["layer_norm"]
    assert [dtype for _, dtype in found.casts()] == [HALF, torch.float32, HALF, torch.float32]
    stored = found.stored()
    assert {name for name, dtype in stored.items() if dtype is torch.float32} == {
        "inner.weight",
        "inner.bias",
    }


def test_neighbouring_islands_are_one() -> None:
    found = lowered(Around(lambda x: (x * 2).relu() * 0.5 / 40000, 40000.0), x(2, 6, 8))
    assert len(found.islands) == 5
    # out of the island, and the output; it reads the network's input as it is
    assert [dtype for _, dtype in found.casts()] == [HALF, torch.float32]
