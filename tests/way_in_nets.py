"""Networks as people bring them: nested inputs and outputs, sizes that are refused, state, recurrent layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import perturb


class Batch(nn.Module):
    """A dictionary in, a number and a None among what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.meta = nn.Sequential(nn.Linear(7, 8), nn.BatchNorm1d(8))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        image = self.image(batch["image"])
        return {
            "y": image.mean((2, 3)) + self.meta(batch["meta"]),
            "maps": [image, (image.relu(),)],
            "loss": None,
            "stride": 3,
        }


class Out(NamedTuple):
    logits: Tensor
    maps: list[Tensor]


@dataclass
class Boxes:
    boxes: Tensor
    scores: Tensor


class Returning(nn.Module):
    """A NamedTuple, a dataclass, or a dataclass within a list."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x)).relu()
        z = self.head(y.mean((2, 3)))
        if self.kind == "tuple":
            return Out(z, [y])
        found = Boxes(z, z.softmax(-1))
        return found if self.kind == "dataclass" else [found, {"y": y}]


class Padding(nn.Module):
    """Pads to a multiple of 16 where it must, and crops again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        ph, pw = (16 - h % 16) % 16, (16 - w % 16) % 16
        if ph > 0 or pw > 0:
            x = F.pad(x, (0, pw, 0, ph), mode="reflect")
        y: Tensor = (self.up(self.norm(self.down(x)).relu()) + x)[..., :h, :w]
        return y


class Skip(nn.Module):
    """Takes even sizes only, as every network with a skip connection: by cat, or by a check of its own."""

    def __init__(self, checks: bool = False) -> None:
        super().__init__()
        self.checks = checks
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.checks and (x.shape[2] % 2 or x.shape[3] % 2):
            raise RuntimeError(f"wrong size {tuple(x.shape)}: multiples of 2, please")
        y = self.stem(x)
        up = F.interpolate(self.deep(F.max_pool2d(y, 2)), scale_factor=2.0)
        z: Tensor = self.head(torch.cat((up, y), 1))
        return z


class Cached(nn.Module):
    """Keeps a grid on the module, and makes it again when the shape differs, as heads of YOLO do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.shape: Any = None
        self.grid = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if self.shape != y.shape:
            self.grid, self.shape = torch.arange(y.shape[-1], dtype=y.dtype), y.shape
        return y + self.grid


class Counting(nn.Module):
    """A buffer that every call changes, and that the output depends on; its input is changed, too."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, x: Tensor) -> Tensor:
        self.count += x.abs().mean()
        x.add_(1)
        y: Tensor = self.body(x) + self.count
        return y


class Recurrent(nn.Module):
    """Frames and a state, of which the batch is on the second axis."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.norm, self.rnn = nn.BatchNorm1d(6), kind(6, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Any]:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        y, h = self.rnn(y, (h, h) if isinstance(self.rnn, nn.LSTM) else h)
        return self.head(y), h


class Masked(nn.Module):
    """A 0/1 mask turned into (1 - mask) * min, and a mean over what is there."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.keeps = keeps
        self.table, self.norm, self.head = nn.Embedding(61, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.table(input_ids))
        there = attention_mask.to(x.dtype) if self.keeps else 1 - attention_mask.to(x.dtype)
        bias = (1.0 - there[:, None, :]) * torch.finfo(x.dtype).min
        x = (x @ x.transpose(1, 2) + bias).softmax(-1) @ x
        y: Tensor = self.head((x * there[..., None]).sum(1) / there[..., None].sum(1))
        return y


class Words(nn.Module):
    """Texts of batch 1 that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        y = self.norm(self.conv(images))
        return torch.einsum("bchw,bnc->bnhw", y, texts.expand(y.shape[0], -1, -1))


class Unexportable(nn.Module):
    """A body that can be captured, and a head that decides by its data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((2, 3))
        if float(y.sum()) > 1e9:
            y = -y
        z: Tensor = self.head(y)
        return z


class Flagged(nn.Module):
    """A part that is called with flags and None beside its tensors."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

        def forward(self, x: Tensor, mask: Tensor | None, *, scale: float, **more: Any) -> Tensor:
            y: Tensor = self.layers(x) * scale + (0 if mask is None else mask)
            return y if more["twice"] is False else y + y

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Flagged.Body(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x, None, scale=3.0, twice=True))
        return y


class Branching(nn.Module):
    """Another function for a batch of one, for large batches, and for long rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        rows, length = x.shape[:2]
        if {"one": rows == 1, "many": rows > 3, "long": length > 60, "single": length == 1}[
            self.kind
        ]:
            y = y * 2
        return y


class Squeezing(nn.Module):
    """A head that squeezes axes away: all of size 1 where none is named."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        y = y.squeeze(self.axes) if self.axes else y.squeeze()
        head: Tensor = self.head(y.unsqueeze(-1))
        return head


class Rolling(nn.Module):
    """Shifted by half of its length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(self.body(x), x.shape[1] // 2, 1)


def _made(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return perturb(module, 0)


def batch() -> nn.Module:
    return _made(Batch())


def skip() -> nn.Module:
    return _made(Skip())


def padding() -> nn.Module:
    return _made(Padding())


def masked() -> nn.Module:
    return _made(Masked())


def words() -> nn.Module:
    return _made(Words())


def unexportable() -> nn.Module:
    return _made(Unexportable())


def named() -> nn.Module:
    return _made(Returning("tuple"))


def inputs() -> Any:
    """Example inputs of `batch`, as a function returns them."""
    return {"image": torch.randn(2, 3, 8, 8), "meta": torch.randn(2, 7)}


class Mixed(nn.Module):
    """Computes in two other types inside, one of them in a stored tensor, and takes and returns one."""

    factor: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.first, self.norm, self.last = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8).half(),
        )
        self.register_buffer("factor", torch.randn(8).to(dtype))

    def forward(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.first(x)) + (more.sum(-1, keepdim=True) * self.factor).float()
        return y + self.last(nn.functional.gelu(y.half())).float(), (x[:, 0] * 3).to(self.dtype)


class HalfOnly(nn.Module):
    """Takes float16, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3).half()

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float16
        result: Tensor = self.last(x)
        return result
