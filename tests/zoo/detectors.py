"""Detectors as their families are written: heads that cache a grid, boxes from distributions, NMS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.nets import perturb


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.SiLU())


def suppressed(
    boxes: Tensor, scores: Tensor, overlap: float = 0.5, most: int = 20
) -> tuple[Tensor, Tensor]:
    """The best boxes ``(N, most, 4)``, and their scores with 0 for those that a better one covers."""
    best, order = scores.topk(most)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    sides = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    covers = common / (sides[:, :, None] + sides[:, None] - common) > overlap
    earlier = torch.ones(most, most, dtype=torch.bool).tril(-1)
    return boxes, best * ~(covers & earlier).any(-1)


class Head(nn.Module):
    """A YOLO head: boxes as distributions over distances, a grid that is kept until the shape changes."""

    STRIDES = (8, 16)

    def __init__(
        self, form: str, classes: int = 3, widths: tuple[int, ...] = (16, 32), bins: int = 4
    ) -> None:
        super().__init__()
        self.form, self.classes, self.bins = form, classes, bins
        self.boxes = nn.ModuleList(
            nn.Sequential(_block(c, c), nn.Conv2d(c, 4 * bins, 1)) for c in widths
        )
        self.scores = nn.ModuleList(
            nn.Sequential(_block(c, c), nn.Conv2d(c, classes, 1)) for c in widths
        )
        self.shape: Any = None
        self.points = self.strides = torch.empty(0)

    def _grid(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        points, strides = [], []
        for x, stride in zip(maps, self.STRIDES, strict=True):
            height, width = x.shape[2:]
            across = torch.arange(width, dtype=x.dtype) + 0.5
            down = torch.arange(height, dtype=x.dtype) + 0.5
            y, z = torch.meshgrid(down, across, indexing="ij")
            points.append(torch.stack((z, y), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), stride, dtype=x.dtype))
        return torch.cat(points).T, torch.cat(strides).T

    def forward(self, maps: list[Tensor]) -> Any:
        flat = [
            torch.cat((boxes(x), scores(x)), 1).flatten(2)
            for x, boxes, scores in zip(maps, self.boxes, self.scores, strict=True)
        ]
        if self.shape != maps[0].shape:
            self.points, self.strides = self._grid(maps)
            self.shape = maps[0].shape
        bins, scores = torch.cat(flat, 2).split((4 * self.bins, self.classes), 1)
        steps = torch.arange(self.bins, dtype=bins.dtype)
        shares = bins.reshape(bins.shape[0], 4, self.bins, -1).softmax(2)
        low, high = (shares * steps[:, None]).sum(2).chunk(2, 1)
        found = torch.cat((self.points - low, self.points + high), 1) * self.strides
        scores = scores.sigmoid()
        if self.form == "nms":
            return suppressed(found.transpose(1, 2), scores.amax(1))
        if self.form == "named":
            return {"boxes": found, "scores": scores}
        return torch.cat((found, scores), 1), maps


class Yolo(nn.Module):
    """Two levels of features and a head."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 8, 2), _block(8, 8, 2))
        self.third, self.fourth = _block(8, 16, 2), _block(16, 32, 2)
        self.head = Head(form)

    def forward(self, images: Tensor) -> Any:
        third = self.third(self.stem(images))
        return self.head([third, self.fourth(third)])


def yolo(form: str) -> nn.Module:
    """``raw``, ``named`` or ``nms``."""
    torch.manual_seed(0)
    return perturb(Yolo(form), 0)


def torchvision_detector(name: str) -> nn.Module:
    """A detector of torchvision with small images; its NMS is that of the shim."""
    from tests import torchvision_shim

    torchvision_shim.install()
    import torchvision.ops.boxes
    from torchvision.models import detection

    torchvision.ops.boxes._assert_has_ops = lambda: None
    torch.manual_seed(0)
    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    module: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, **sizes)
    return perturb(module.eval(), 0)
