"""What went wrong once on the way to RMSNorm, or would have: each fails on the code before its mend."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.rewrite import parse, run_pipeline
from normfold.targets import export_onnx
from tests.nets import perturb
from tests.passes.judge import judge, right

RMSNORM = "canonicalize,fold-affine{split-norms=true},center-stream,restore"
TOKENS = (2, 5, 6)


class Sum(nn.Module):
    """Two norms whose results are added, and read by what absorbs neither bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(self.a(x)) + self.second(self.b(x)))


def test_two_norms_do_not_hand_a_bias_to_each_other_for_ever() -> None:
    graph = capture(perturb(Sum()), (torch.randn(TOKENS),))
    outcome = right(judge(graph, RMSNORM))
    nodes = [node for node in outcome.after.nodes if not is_static(node)]
    additions = [node for node in nodes if op_name(node) == "add"]
    assert len(additions) == 2  # the sum, and one bias for both


class Number(nn.Module):
    """A number is added to a norm: a sum with one side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(x) + 1.5))  # type: ignore[no-any-return]


def test_a_number_added_to_a_norm() -> None:
    right(judge(capture(perturb(Number()), (torch.randn(TOKENS),)), RMSNORM))


class SharedMatmul(nn.Module):
    """A matrix that two products share, without biases: a shift must not make another matrix of one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.matrix = nn.LayerNorm(6), nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(x) @ self.matrix) + torch.tanh(x @ self.matrix)


def test_a_shift_alone_does_not_copy_a_shared_matrix() -> None:
    module = perturb(SharedMatmul())
    graph = capture(module, (torch.randn(TOKENS),))
    text = "canonicalize,fold-affine{split-norms=true copy-shared=false},restore"
    outcome = right(judge(graph, text))
    matrices = [value for _, value in outcome.baked.module.named_buffers() if value.dim() == 2]
    matrices += [value for _, value in outcome.baked.module.named_parameters() if value.dim() == 2]
    assert len({value.data_ptr() for value in matrices}) == 1


class WidenedCat(nn.Module):
    """A cat of two dtypes: what is read of the narrow part is wide."""

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([x.half(), x], 1)
        return joined[:, : x.shape[1]] * 1e-4


def test_a_part_of_a_cat_keeps_the_dtype_of_the_cat() -> None:
    graph = capture(WidenedCat(), (torch.randn(TOKENS),), dynamic=None)
    rewritten, _ = run_pipeline(graph, parse("canonicalize"))
    x = torch.randn(TOKENS)
    assert torch.equal(rewritten.module(x), graph.module(x))
    assert rewritten.module(x).dtype == torch.float32


class DynamicWidth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * 2


def test_a_norm_of_unknown_width_is_declined() -> None:
    graph = capture(DynamicWidth(), (torch.randn(TOKENS),), dynamic={"x": {2: Dim.DYNAMIC}})
    _, reports = run_pipeline(graph, parse("canonicalize,center-stream"))
    assert [(item.code, item.detail) for item in reports[-1].declined] == [
        ("NF116", "its width differs at run time")
    ]


class SplitTokens(nn.Module):
    """One part of a split is centred by an op, another one is read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.tanh(x).split([2, 2, 1], 1)
        parts = (first, first, second, second)
        found = [
            head(norm(part)) for norm, head, part in zip(self.norms, self.heads, parts, strict=True)
        ]
        return torch.cat(found, 1) + third.sum()  # type: ignore[no-any-return]


def test_parts_of_a_split_are_centred_one_by_one() -> None:
    outcome = right(judge(capture(perturb(SplitTokens()), (torch.randn(TOKENS),)), RMSNORM))
    assert sum(op_name(node) == "rms_norm" for node in outcome.after.nodes) == 4


def test_squares_do_not_overflow_in_half_precision(tmp_path: Path) -> None:
    """300^2 is more than half precision holds: below opset 23 the mean of squares is taken in float32."""
    net = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8, eps=1e-5)).eval().half()
    graph = capture(net, (torch.randn(2, 3, 8).half(),), dynamic=None)
    baked, _ = run_pipeline(graph, parse("canonicalize,restore,bake"))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).half() * 600
    path = tmp_path / "half.onnx"
    export_onnx(baked, path, opset=20)
    (found,) = ReferenceEvaluator(onnx.load(path)).run(None, {graph.input_names[0]: x.numpy()})
    expected = net.float()(x.float()).detach()
    assert (torch.from_numpy(found).float() - expected).abs().max() < 5e-3 * expected.abs().max()
