"""RMS norms in ONNX: one op where the opset has it, else what onnxruntime fuses; no ones made at run time."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.targets import RuntimeSession, export_onnx
from tests.targets.nets import error, folded, reference


class Norms(nn.Module):
    """With a gain, without one, and over two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(8, eps=1e-3), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(N,T,8) to the same shape."""
        x = self.linear(torch.sigmoid(self.norm(x)))
        x = torch.tanh(F.rms_norm(x, (8,), eps=1e-3))
        return F.rms_norm(x, x.shape[1:])  # eps of the dtype


@pytest.mark.parametrize("opset", [18, 22, 23])
def test_values_and_ops(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    net = Norms().eval()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(2, 5, 8) + 1
    path = tmp_path / "net.onnx"
    export_onnx(folded(net, x), path, opset=opset)
    assert error(RuntimeSession(path).run([x]), reference(net, x)) < 1e-5
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("RMSNormalization") == (3 if opset == 23 else 0)
    assert not {"Shape", "ConstantOfShape", "Expand"} & set(ops)


def test_below_23_the_runtime_fuses_them(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8, eps=1e-5)).eval(), torch.randn(2, 5, 8)
    path, fused = tmp_path / "net.onnx", tmp_path / "fused.onnx"
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 1.5)  # type: ignore[operator]
    for module in (net, nn.Sequential(net[0], nn.Tanh(), Bare())):
        export_onnx(folded(module.eval(), x), path, opset=20)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(fused)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        ops = [node.op_type for node in onnx.load(fused).graph.node]
        assert ops.count("SimplifiedLayerNormalization") == 1
        assert "Pow" not in ops


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), eps=1e-5)
