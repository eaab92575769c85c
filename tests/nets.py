"""Small networks that tests share, and perturbed parameters so that nothing is its default."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = (5, 6, 7)  # spatial sizes, all different, so that no axis is mistaken for another


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, biases and gains (of both signs for 1-D ``weight``), in place; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        leaf = name.split(".")[-1]
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            if leaf == "running_var":
                tensor.copy_(0.5 + 1.5 * uniform)
            elif leaf == "running_mean":
                tensor.copy_(0.3 * noise)
            elif leaf == "weight" and tensor.dim() == 1:
                tensor.copy_((0.5 + uniform) * torch.where(noise > -0.5, 1.0, -1.0))
            elif tensor.dim() == 1:
                tensor.add_(0.3 * noise.to(tensor.dtype))
    return module.eval()


# -- the matrix -------------------------------------------------------------------------------------

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LAYERS = (
    "conv1",
    "conv2",
    "conv3",
    "transposed1",
    "transposed2",
    "transposed3",
    "linear2",
    "linear3",
)
GROUPS = ("1", "2", "all")
PADDINGS = ("none", "zeros", "reflect", "replicate", "circular", "asymmetric", "same")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One combination of the matrix; ``before`` puts the norm in front of the layer."""

    layer: str
    groups: str
    padding: str
    bias: bool
    affine: bool
    before: bool

    @property
    def spatial(self) -> int:
        return 0 if self.layer.startswith("linear") else int(self.layer[-1])

    def __str__(self) -> str:
        words = [self.layer, f"groups={self.groups}", f"padding={self.padding}"]
        words += [word for word, on in (("bias", self.bias), ("affine", self.affine)) if on]
        return " ".join([*words, "before" if self.before else "after"])


def families() -> list[tuple[str, str, str]]:
    """Every (layer, groups, padding) that PyTorch has."""
    found = []
    for layer, groups, padding in itertools.product(LAYERS, GROUPS, PADDINGS):
        if layer.startswith("linear") and (groups != "1" or padding not in ("none", "asymmetric")):
            continue
        if layer == "linear2" and padding != "none":
            continue
        if layer.startswith("transposed") and padding not in ("none", "zeros", "asymmetric"):
            continue
        found.append((layer, groups, padding))
    return found


def cases(layer: str, groups: str, padding: str) -> list[Case]:
    """The eight cases (bias x affine x direction) of one family."""
    switch = (True, False)
    return [
        Case(layer, groups, padding, bias, affine, before)
        for bias, affine, before in itertools.product(switch, switch, switch)
    ]


class Branch(nn.Module):
    """Norm, layer and padding of one case. Six channels in and four out, six in and out if depthwise."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        wide, narrow = 6, 6 if case.groups == "all" else 4
        features = wide if case.before else narrow
        groups = {"1": 1, "2": 2, "all": wide}[case.groups]
        padding: Any = {"none": 0, "asymmetric": 0, "same": "same"}.get(case.padding, 1)
        self.layer: nn.Module
        self.norm: nn.Module
        if case.spatial == 0:
            self.layer = nn.Linear(wide, narrow, bias=case.bias)
            self.norm = nn.BatchNorm1d(features, affine=case.affine)
        elif case.layer.startswith("conv"):
            mode: Any = (
                case.padding if case.padding in ("reflect", "replicate", "circular") else "zeros"
            )
            self.layer = CONVS[case.spatial](
                wide, narrow, 3, padding=padding, groups=groups, bias=case.bias, padding_mode=mode
            )
            self.norm = NORMS[case.spatial](features, affine=case.affine)
        else:
            self.layer = TRANSPOSED[case.spatial](
                wide, narrow, 3, stride=2, padding=padding, groups=groups, bias=case.bias
            )
            self.norm = NORMS[case.spatial](features, affine=case.affine)

    def _norm(self, x: Tensor) -> Any:
        if x.dim() == 3 and not self.case.spatial:  # tokens: the features are last
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x)

    def _pad(self, x: Tensor) -> Tensor:
        if self.case.padding != "asymmetric":
            return x
        # uneven on the first spatial axis, none on the others; on the token axis of a linear
        widths = [0, 0] * ((self.case.spatial or 2) - 1) + [1, 2]
        return F.pad(x, widths)

    def forward(self, x: Tensor) -> Any:
        if self.case.before:
            return self.layer(self._pad(self._norm(x)))
        return self._norm(self.layer(self._pad(x)))


class Matrix(nn.Module):
    """One branch for each case, on one input; returns one output for each."""

    def __init__(self, branches: list[Case]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(case) for case in branches)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def matrix_input(layer: str) -> Tensor:
    """Input of a family: batch 2, six channels."""
    if layer == "linear2":
        return torch.randn(2, 6)
    if layer == "linear3":
        return torch.randn(2, 5, 6)
    return torch.randn(2, 6, *SIZES[: int(layer[-1])])


# -- blocks -----------------------------------------------------------------------------------------


class Compose(nn.Module):
    """Modules under names of one's own, wired by a function of (self, inputs)."""

    def __init__(self, wiring: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> object:
        return self.wiring(self, *inputs)


def conv(wide: int = 4, narrow: int = 4, kernel: int = 3, **options: object) -> nn.Conv2d:
    """Conv2d that keeps the size unless told otherwise."""
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(wide, narrow, kernel, **options)  # type: ignore[arg-type]


def batch_norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every batch norm module, by path."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            yield name, part


class Residual(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input: a ResNet's basic block."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class RepBlock(nn.Module):
    """RepVGG in training form: 3x3 and 1x1 convolutions and the identity, each with a BN, summed."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv3, self.norm3 = conv(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.conv1, self.norm1 = conv(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Any:
        return self.norm3(self.conv3(x)) + self.norm1(self.conv1(x)) + self.identity(x)


class Encoder(nn.Module):
    """Pre-LN transformer block with LayerScale, one head, and a linear in front and behind."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale1 = nn.Parameter(torch.rand(width) + 0.5)
        self.scale2 = nn.Parameter(torch.rand(width) + 0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.scale1 * self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + self.scale2 * self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x)


class PostNorm(nn.Module):
    """Residual after the norm (BERT): the norm's affine is on the stream and cannot leave it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Any:
        x = self.norm1(x + self.fc1(x))
        return self.norm2(x + F.gelu(self.fc2(x)))


class Norms(nn.Module):
    """One norm of every kind, with and without affine, on one image."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.layer, self.rms = nn.LayerNorm(6), nn.RMSNorm(6)
        self.group, self.instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.bare, self.biasless = (
            nn.LayerNorm(6, elementwise_affine=False),
            nn.LayerNorm(6, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.children():
            x = F.gelu(norm(x))
        return x
