"""Norms over the positions of images whose mean is far above their deviation: right in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.errors import ExportError
from normfold.targets import RuntimeSession, export_onnx
from tests.targets.nets import PIPELINE, folded

NORMS = {
    "one group": nn.GroupNorm(1, 8),
    "groups": nn.GroupNorm(4, 8),
    "a channel a group": nn.GroupNorm(8, 8),
    "without an affine part": nn.GroupNorm(2, 8, affine=False),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "instance norm without an affine part": nn.InstanceNorm2d(8),
}


@pytest.mark.parametrize("name", NORMS)
def test_grey_and_bright_images(name: str, tmp_path: Path) -> None:
    """onnxruntime's InstanceNormalization alone errs by 1e-2 and more on some of them."""
    torch.manual_seed(0)
    norm = NORMS[name].eval()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(3, 8, 128, 128) * torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1)
    x = x + torch.tensor([30.0, 1000.0, 0.7]).view(3, 1, 1, 1)
    exported = export_onnx(folded(norm, x), tmp_path / "norm.onnx")
    (result,) = RuntimeSession(exported.path, threads=1).run([x])
    with torch.no_grad():
        expected = norm.double()(x.double())
    assert float((result - expected).abs().max()) < 2e-5


def test_other_ranks(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.shift = nn.Parameter(torch.arange(1.0, 7)), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
            return [
                F.group_norm(x, 2, self.gain, self.shift),
                F.group_norm(x, 3, self.gain),
                F.group_norm(y, 6, bias=self.shift),
                F.group_norm(y, 2, self.gain, self.shift),
            ]

    net, args = Net().eval(), (torch.randn(4, 6), torch.randn(4, 6, 3, 2, 5))
    exported = export_onnx(folded(net, *args), tmp_path / "net.onnx")
    results = RuntimeSession(exported.path, threads=1).run(list(args))
    with torch.no_grad():
        for result, expected in zip(results, net(*args), strict=True):
            torch.testing.assert_close(result, expected)


class Resize(nn.Module):
    def __init__(self, corners: bool) -> None:
        super().__init__()
        self.conv, self.corners = nn.Conv2d(3, 4, 3), corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(
            self.conv(x), (9, 7), mode="bilinear", align_corners=self.corners, antialias=True
        )


def test_an_antialiased_resize_leaves_the_batch_free(tmp_path: Path) -> None:
    """The decomposition of the op reads all sizes as numbers, which fixed those of the original as well."""
    net, x = Resize(False).eval(), torch.randn(2, 3, 24, 24)
    graph = normfold.capture(net, (x,))
    exported = export_onnx(normfold.run(graph, PIPELINE, verify="off")[0], tmp_path / "net.onnx")
    assert "s" in str(next(iter(graph.nodes)).meta["val"].shape[0])
    x = torch.randn(5, 3, 24, 24)
    graph.module(x)
    (result,) = RuntimeSession(exported.path, threads=1).run([x])
    torch.testing.assert_close(result, net(x))


def test_an_antialiased_resize_of_corners_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="align_corners") as caught:
        export_onnx(folded(Resize(True).eval(), torch.randn(2, 3, 24, 24)), tmp_path / "net.onnx")
    assert "test_images.py" in str(caught.value)
