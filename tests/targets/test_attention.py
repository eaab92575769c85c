"""Attention written out as plain ops is torch's, in every form, in float64 and in onnxruntime."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.graph import op_name
from normfold.targets import RuntimeSession, export_onnx
from normfold.targets.attention import write_attention
from tests.sampling import every_other

HEADS, WIDTH = 4, 8


@dataclass
class Form:
    """One way to call attention: its options, sizes, and the mask, an input or a buffer."""

    options: dict[str, Any] = field(default_factory=dict)
    keys: int = 6
    key_heads: int = HEADS
    value_width: int = WIDTH
    mask: Tensor | None = None
    buffer: bool = False
    blind: bool = False  # some row may look at nothing


def see(rows: int = 5, columns: int = 6, blind: bool = False) -> Tensor:
    """A boolean mask in which every row sees something, or (``blind``) the second and last nothing."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, 0] = True
    if blind:
        mask[1] = mask[-1] = False
    return mask


def added(mask: Tensor, least: float = -math.inf) -> Tensor:
    """The float mask of a boolean one, with biases of both signs where it sees."""
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    return noise.masked_fill(~mask, least)


FORMS = {
    "plain": Form(),
    "longer-queries": Form(keys=3),
    "one-key": Form(keys=1),
    "values-of-another-width": Form(value_width=3),
    "scale": Form({"scale": 0.7}),
    "negative-scale": Form({"scale": -0.3}),
    "causal": Form({"is_causal": True}, keys=5),
    "causal-longer-keys": Form({"is_causal": True}, keys=7),
    "causal-longer-queries": Form({"is_causal": True}, keys=3),
    "grouped": Form({"enable_gqa": True}, key_heads=2),
    "grouped-causal": Form({"enable_gqa": True, "is_causal": True}, keys=5, key_heads=1),
    "ungrouped": Form({"enable_gqa": True}),
    "boolean": Form(mask=see()),
    "boolean-blind": Form(mask=see(blind=True), blind=True),
    "boolean-per-batch": Form(mask=see(blind=True).expand(2, 1, 5, 6), blind=True),
    "boolean-per-key": Form(mask=see()[1:2].clone()),
    "boolean-per-query": Form(mask=see(blind=True)[:, 1:2].clone(), blind=True),
    "boolean-buffer": Form(mask=see(), buffer=True),
    "boolean-buffer-blind": Form(mask=see(blind=True), buffer=True, blind=True),
    "float": Form(mask=added(see())),
    "float-blind": Form(mask=added(see(blind=True)), blind=True),
    "float-per-batch": Form(mask=added(see(blind=True)).expand(2, HEADS, 5, 6), blind=True),
    "float-least": Form(mask=added(see(blind=True), torch.finfo(torch.float32).min)),
    "float-minus-1e9": Form(mask=added(see(), -1e9)),
    "float-buffer": Form(mask=added(see()), buffer=True),
    "float-buffer-blind": Form(mask=added(see(blind=True)), buffer=True, blind=True),
    "grouped-boolean-blind": Form(
        {"enable_gqa": True, "scale": 0.5}, key_heads=2, mask=see(blind=True), blind=True
    ),
}

# one of each kind; the others differ in nothing that an export knows
EXPORTED = (
    "plain", "scale", "causal-longer-keys", "grouped", "grouped-causal", "boolean-blind",
    "boolean-buffer-blind", "float-blind", "float-least", "float-buffer-blind",
)  # fmt: skip
BOTH_OPSETS = ("plain", "causal-longer-keys", "grouped", "boolean-blind", "float-blind")


class Attention(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.options = form.options
        self.register_buffer("mask", form.mask if form.buffer else None)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Tensor:
        mask = self.mask if mask is None else mask
        return F.scaled_dot_product_attention(query, key, value, mask, **self.options)


def inputs(form: Form, batch: int = 2, rows: int = 5, columns: int = 0) -> tuple[Tensor, ...]:
    columns = columns or form.keys
    tensors = (
        torch.randn(batch, HEADS, rows, WIDTH),
        torch.randn(batch, form.key_heads, columns, WIDTH),
        torch.randn(batch, form.key_heads, columns, form.value_width),
    )
    return tensors if form.mask is None or form.buffer else (*tensors, form.mask.clone())


def written(graph: Graph) -> Graph:
    copy = graph.copy()
    assert write_attention(copy.module) == 1
    copy.recompile()
    assert "scaled_dot_product_attention" not in {op_name(node) for node in copy.nodes}
    return copy


def off(result: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value; NaN where there is one."""
    assert result.shape == expected.shape
    return float((result.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FORMS)
def test_written_out_it_is_torchs(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    given = inputs(form)
    net = Attention(form)
    graph = capture(net, given, dynamic=None)
    result = Evaluator(written(graph).module, Float64())(*given)[0]
    wide = [x.double() if x.is_floating_point() else x for x in given]
    expected = net.double()(*wide)
    assert off(result, expected) < 1e-14
    assert bool((result == 0).all(-1).any()) == form.blind
    opsets = (20, 23) if name in BOTH_OPSETS else (20,)
    for opset in opsets if name in EXPORTED else ():
        check_file(graph, form, given, expected, tmp_path / "net.onnx", opset)


def check_file(
    graph: Graph, form: Form, given: tuple[Tensor, ...], expected: Tensor, path: Path, opset: int
) -> None:
    exported = export_onnx(graph, path, opset=opset, target="trt-rtx")
    ops = exported.census.ops
    assert exported.opset == opset
    assert "Attention" not in ops
    assert (ops["MatMul"], ops["Softmax"]) == (2, 1)
    if form.mask is None and not form.options:
        assert ops == {"Mul": 1, "Transpose": 1, "MatMul": 2, "Softmax": 1}
    for level in ("all", "none"):
        (result,) = RuntimeSession(exported.path, level, threads=1).run(list(given))
        assert off(result, expected) < 1e-6


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_targets_of_tensorrt_never_have_the_op(target: str, tmp_path: Path) -> None:
    graph = capture(Attention(Form()), inputs(Form()), dynamic=None)
    fused = export_onnx(graph, tmp_path / "fused.onnx", opset=23)
    assert fused.census.ops["Attention"] == 1  # what the same graph has for onnxruntime
    plain = export_onnx(graph, tmp_path / "plain.onnx", opset=23, target=target)
    assert "Attention" not in plain.census.ops
    assert [node for node in graph.nodes if op_name(node) == "scaled_dot_product_attention"]


def test_a_constant_mask_that_blinds_no_row_costs_one_op(tmp_path: Path) -> None:
    counted = {}
    for name in ("plain", "float-buffer", "boolean-buffer"):
        graph = capture(Attention(FORMS[name]), inputs(FORMS[name]), dynamic=None)
        exported = export_onnx(graph, tmp_path / f"{name}.onnx", target="trt")
        counted[name] = Counter(exported.census.ops)
    assert counted["float-buffer"] - counted["plain"] == Counter(Add=1)
    assert counted["boolean-buffer"] - counted["plain"] == Counter(Where=1)


DYNAMIC = {
    "plain": 20,
    "causal": 23,
    "scale": 20,
    "grouped": 20,
    "grouped-causal": 20,
    "boolean-blind": 23,
    "float-blind": 20,
}


@pytest.mark.parametrize("name", every_other(DYNAMIC))
def test_batch_and_lengths_stay_dynamic(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    rows, columns, batch = Dim("rows"), Dim("columns"), Dim("batch")
    shapes: Any = [{0: batch, 2: rows}, {0: batch, 2: columns}, {0: batch, 2: columns}]
    if form.mask is not None:
        shapes.append({0: rows, 1: columns})
    net = Attention(form)
    graph = capture(net, inputs(form, columns=6), dynamic=tuple(shapes))
    exported = export_onnx(graph, tmp_path / "net.onnx", opset=DYNAMIC[name], target="trt")
    onnx.checker.check_model(exported.path, full_check=True)
    session = RuntimeSession(exported.path, threads=1)
    interpreter = Evaluator(written(graph).module, Float64())
    for sizes in ((1, 5, 6), (3, 2, 9), (2, 8, 4)):
        given = list(inputs(form, *sizes))
        if form.mask is not None:
            given[3] = see(*sizes[1:], blind=True)
            if form.mask.is_floating_point():
                given[3] = added(given[3])
        wide = [x.double() if x.is_floating_point() else x for x in given]
        expected = net(*wide)
        assert off(interpreter(*given)[0], expected) < 1e-14
        assert off(session.run(given)[0], expected) < 1e-6


def test_attention_with_dropout_stays() -> None:
    graph = capture(Attention(Form({"dropout_p": 0.1})), inputs(Form()), dynamic=None)
    assert write_attention(graph.module) == 0


@pytest.mark.parametrize("shape", [(2, 1, 1, 6), (2, HEADS, 1, 6), (1, 6)])
@pytest.mark.parametrize("boolean", [True, False])
def test_one_row_of_a_mask_for_every_query_in_the_fused_op(
    shape: tuple[int, ...], boolean: bool, tmp_path: Path
) -> None:
    kept = torch.ones(shape, dtype=torch.bool)
    kept[..., 4:] = False
    form = Form(mask=kept if boolean else added(kept))
    given = inputs(form)
    net = Attention(form)
    exported = export_onnx(capture(net, given, dynamic=None), tmp_path / "net.onnx", opset=23)
    assert exported.census.ops["Attention"] == 1
    wide = [x.double() if x.is_floating_point() else x for x in given]
    assert off(RuntimeSession(exported.path).run(list(given))[0], net.double()(*wide)) < 1e-6


def test_keys_of_one_head_for_all_queries(tmp_path: Path) -> None:
    form = Form(key_heads=1)
    given = inputs(form)
    net = Attention(form)
    exported = export_onnx(capture(net, given, dynamic=None), tmp_path / "net.onnx", opset=23)
    assert "Attention" not in exported.census.ops
    expected = net.double()(*[x.double() for x in given])
    assert off(RuntimeSession(exported.path).run(list(given))[0], expected) < 1e-6


UNFUSED: dict[str, tuple[Form, tuple[int, ...]]] = {
    "two axes": (Form(), ()),
    "three axes": (Form(), (2,)),
    "three axes, masked": (Form(mask=see()), (2,)),
    "three axes, causal": (Form({"is_causal": True}), (2,)),
    "five axes": (Form(), (2, 3, 2)),
    "negative scale": (Form({"scale": -0.3}), (2, 3)),
    "a mask with one column": (Form(mask=see(blind=True)[:, 1:2].clone()), (2, 3)),
    "hidden by the least number": (
        Form(mask=added(see(blind=True), torch.finfo(torch.float32).min)),
        (2, 3),
    ),
    "grouped, of equal heads": (Form({"enable_gqa": True}), (2, 3)),
}


@pytest.mark.parametrize("name", UNFUSED)
def test_calls_that_the_fused_op_has_no_form_for(name: str, tmp_path: Path) -> None:
    form, front = UNFUSED[name]
    given = [torch.randn(*front, rows, WIDTH) for rows in (5, 6, 6)]
    given += [] if form.mask is None else [form.mask.clone()]
    net = Attention(form)
    path = export_onnx(
        capture(net, tuple(given), dynamic=None), tmp_path / "net.onnx", opset=23
    ).path
    for level in ("all", "none"):
        (result,) = RuntimeSession(path, level, threads=1).run(given)
        wide = [x.double() if x.is_floating_point() else x for x in given]
        assert off(result, net(*wide)) < 1e-6


class Causal(nn.Module):
    """Two layers that each hide the future, with sizes read from their own operands."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x (N,tokens,8) to the same shape."""
        for layer in self.layers:
            parts = layer(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind()
            seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + seen.transpose(1, 2).flatten(2)
        return x


def test_layers_of_a_free_length_share_one_mask(tmp_path: Path) -> None:
    net, x = Causal().eval(), torch.randn(2, 5, WIDTH)
    sizes = {"x": {0: Dim("batch"), 1: Dim("tokens", max=64)}}
    exported = export_onnx(capture(net, (x,), dynamic=sizes), tmp_path / "net.onnx")
    ops = exported.census.ops
    assert (ops["Less"], ops["Range"], ops["Where"]) == (1, 1, 2)
    assert (
        ops["Transpose"] == 2 * 3
    )  # heads apart and together; keys turned by the op that takes them apart
    for level in ("all", "none"):
        session = RuntimeSession(exported.path, level, threads=1)
        for length in (1, 5, 17):
            x = torch.randn(3, length, WIDTH)
            torch.testing.assert_close(session.run([x])[0], net(x), rtol=1e-5, atol=1e-5)
