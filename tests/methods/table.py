"""Every method of normalisation in a small network, and what becomes of it in the preset ``folded``.

``python -m tests.methods`` writes docs/norm-methods.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normfold.ir import capture
from normfold.judge.certificate import certify
from normfold.report.sites import site_statuses
from tests.methods import norms, weights
from tests.nets import Compose, perturb
from tests.passes.judge import judge, right

Shape = tuple[int, ...]
IMAGES, TOKENS, ROWS = ((2, 3, 6, 5),), ((2, 5, 6),), ((4, 6),)
TEXT = "canonicalize,fold-affine,restore"


@dataclass(frozen=True)
class Method:
    """A network with a method, and the shapes of its inputs."""

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Found:
    """What became of a method.

    Attributes:
        gone, left: sites that fold away, and norms or affines that stay; one written by hand has several.
        codes: why they stay.
        certificate: its state.
        error: of the un-baked graph in float64.
    """

    gone: int
    left: int
    codes: tuple[str, ...]
    certificate: str
    error: float


def found(method: Method) -> Found:
    """Run a method's network through the preset; right, or an assertion fails."""
    torch.manual_seed(0)
    graph = capture(perturb(method.build()), tuple(torch.randn(shape) for shape in method.shapes))
    outcome = right(judge(graph, TEXT))
    statuses = site_statuses(outcome.after, outcome.reports)
    gone = [item for item in statuses if item.state == "gone"]
    left = [item for item in statuses if item.state != "gone"]
    codes = tuple(sorted({item.code for item in left if item.code}))
    state = certify(graph, outcome.after).state
    return Found(len(gone), len(left), codes, state, max(outcome.algebra))


def _images(norm: nn.Module, act: nn.Module | None = None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        last = nn.Conv2d(8, 4, 1)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, act or nn.ReLU(), last)

    return build


def _conv() -> nn.Module:
    return nn.Conv2d(3, 8, 3, padding=1)


def _tokens(norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), norm, nn.Linear(8, 4))


def _layer(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def _linear(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def _conditional(self: Any, x: Tensor, condition: Tensor) -> Any:
    return self.last(F.relu(self.norm(self.first(x), condition)))


def _with_condition(norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Compose(
        _conditional, first=nn.Conv2d(3, 8, 3), norm=norm, last=nn.Conv2d(8, 4, 1)
    )


def _residual(self: Any, x: Tensor) -> Any:
    y = self.first(x)
    return self.last(self.norm(y + self.second(F.relu(y))))


def _scaled(self: Any, x: Tensor) -> Any:
    y = self.first(x)
    return self.last(y + self.scale * self.second(F.relu(y)))


def _fixup(self: Any, x: Tensor) -> Any:
    y = self.first(x)
    z = self.second(F.relu(y + self.bias1) + self.bias2) * self.scale + self.bias3
    return self.last(y + z)


class Compound(Compose):
    """`Compose` with parameters of its own."""

    def __init__(self, forward: Any, parameters: dict[str, Tensor], **modules: nn.Module) -> None:
        super().__init__(forward, **modules)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))


def _graph_layer(self: Any, x: Tensor) -> Any:
    y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
    x = self.norm((x + self.out(y)).transpose(1, 2)).transpose(1, 2)
    return x + self.ffn(x)


def _shared(self: Any, x: Tensor) -> Any:
    y = self.stem(x)
    return self.mlp(self.norm1(y)) + self.mlp(self.norm2(y * 2))


def _branch(self: Any, x: Tensor) -> Any:
    y = self.norm(self.first(x))
    if self.training:  # BatchFormer, auxiliary heads: attention over the batch, in training alone
        y = torch.cat([y, self.aux(y)])
    return self.last(F.relu(y))


def _temperature(self: Any, x: Tensor) -> Any:
    return self.last(F.relu(self.norm(self.first(x)))) / self.temperature


def _with_mask(self: Any, x: Tensor, mask: Tensor) -> Any:
    return self.last(F.relu(self.norm(self.first(x), mask.sigmoid())))


def _fixed_point(self: Any, x: Tensor) -> Any:
    z = torch.zeros_like(x)
    for _ in range(6):  # an implicit layer, unrolled
        z = torch.tanh(self.norm(self.of(z) + x))
    return self.last(z)


def _codebook(self: Any, x: Tensor) -> Any:
    """Weights looked up in a learned table."""
    return F.linear(F.relu(self.norm(self.first(x))), self.values[self.index].view(4, -1))


class Codebook(Compose):
    def __init__(self) -> None:
        super().__init__(_codebook, first=nn.Linear(6, 8), norm=nn.BatchNorm1d(8))
        self.values = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.arange(32) % 5)


def methods() -> list[Method]:
    """All of them, in the order of the table."""
    return [
        Method("BatchNorm", _images(nn.BatchNorm2d(8)), IMAGES),
        Method("Ghost BatchNorm", _images(norms.GhostBatchNorm(8)), IMAGES),
        Method("BatchNorm of recent batches", _images(nn.BatchNorm2d(8, momentum=0.5)), IMAGES),
        Method("EstBN", _images(norms.EstimatedBatchNorm(8)), IMAGES),
        Method("Online Normalization", _images(norms.OnlineNorm(8)), IMAGES),
        Method("Batch-Channel Normalization", _images(norms.BatchChannelNorm(8)), IMAGES),
        Method("PowerNorm, GroupScaling", _tokens(norms.PowerNorm(8)), TOKENS),
        Method("UN", _tokens(norms.UnifiedNorm(8)), TOKENS),
        Method("RepBN, PRepBN", _tokens(norms.RepBatchNorm(8)), TOKENS),
        Method("EvoNorm B0", _images(norms.EvoNormB0(8), nn.Identity()), IMAGES),
        Method("EvoNorm B1", _images(norms.EvoNormB1(8), nn.Identity()), IMAGES),
        Method("EvoNorm B2", _images(norms.EvoNormB2(8), nn.Identity()), IMAGES),
        Method("EvoNorm S0", _images(norms.EvoNormS0(8), nn.Identity()), IMAGES),
        Method("IBN-a", _images(norms.InstanceBatchNorm(8)), IMAGES),
        Method("IBN-b", lambda: Compose(_residual, first=_conv(), second=nn.Conv2d(8, 8, 1),
               norm=nn.InstanceNorm2d(8, affine=True), last=nn.Conv2d(8, 4, 1)), IMAGES),
        Method("InstanceNorm", _images(nn.InstanceNorm2d(8, affine=True), nn.Identity()), IMAGES),
        Method("GroupNorm", _images(nn.GroupNorm(2, 8), nn.Identity()), IMAGES),
        Method("LayerNorm", _tokens(nn.LayerNorm(8)), TOKENS),
        Method("RMSNorm", _tokens(nn.RMSNorm(8)), TOKENS),
        Method("RMSNorm by hand", _tokens(norms.RootMeanSquare(8)), TOKENS),
        Method("RMSNorm, 1 + w", _tokens(norms.RootMeanSquare(8, "1 + w")), TOKENS),
        Method("RMSNorm in float32", _tokens(norms.RootMeanSquare(8, "float32")), TOKENS),
        Method("RMSNorm, eps outside the root", _tokens(norms.RootMeanSquare(8, "eps outside the root")), TOKENS),
        Method("LayerNorm([1, 8])", lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm([1, 8]), nn.Linear(8, 4)),
               ((2, 1, 6),)),
        Method("DyT", _tokens(norms.DynamicTanh(8)), TOKENS),
        Method("Derf", _tokens(norms.DynamicTanh(8, torch.erf, True)), TOKENS),
        Method("TaperNorm, FakeLN", _tokens(norms.AveragedAffine(8)), TOKENS),
        Method("Weight Norm", lambda: _layer(parametrizations.weight_norm(_conv()))(), IMAGES),
        Method("Spectral Norm", lambda: _layer(parametrizations.spectral_norm(_conv()))(), IMAGES),
        Method("Weight conditioning", lambda: _linear(weights.conditioned(nn.Linear(6, 8)))(), ROWS),
        Method("Orthogonal weights", lambda: _linear(parametrizations.orthogonal(nn.Linear(6, 8)))(), ROWS),
        Method("Weight standardisation, std + eps", lambda: _layer(weights.Standardised(3, 8))(), IMAGES),
        Method("Weight standardisation, var + eps",
               lambda: _layer(weights.Standardised(3, 8, how="var + eps"))(), IMAGES),
        Method("Weight standardisation by batch_norm",
               lambda: _layer(weights.Standardised(3, 8, how="batch_norm"))(), IMAGES),
        Method("Scaled weight standardisation (NFNet)", lambda: _layer(weights.ScaledStandardised(3, 8))(),
               IMAGES),
        Method("FedWon", lambda: nn.Sequential(weights.ScaledStandardised(3, 8, gains=False), nn.ReLU(),
               weights.ScaledStandardised(8, 4, gains=False)), IMAGES),
        Method("SELU", lambda: nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.Linear(8, 4)), ROWS),
        Method("SkipInit", lambda: Compound(_scaled, {"scale": torch.tensor(0.3)}, first=_conv(),
               second=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 4, 1)), IMAGES),
        Method("Fixup", lambda: Compound(_fixup, {"scale": torch.tensor(0.3), "bias1": torch.tensor(0.1),
               "bias2": torch.tensor(-0.2), "bias3": torch.tensor(0.4)}, first=_conv(),
               second=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 4, 1)), IMAGES),
        Method("LayerScale", lambda: Compound(_scaled, {"scale": torch.rand(8, 1, 1)}, first=_conv(),
               second=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 4, 1)), IMAGES),
        Method("Graph transformer, BatchNorm behind the residual", lambda: Compose(_graph_layer,
               norm=nn.BatchNorm1d(6), q=nn.Linear(6, 6), k=nn.Linear(6, 6), v=nn.Linear(6, 6),
               out=nn.Linear(6, 6), ffn=nn.Linear(6, 6)), TOKENS),
        Method("CrossQ policy", lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8),
               nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh()), ROWS),
        Method("Shared weights, private LayerNorms", lambda: Compose(_shared, stem=nn.Linear(6, 8),
               norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), mlp=nn.Linear(8, 4)), TOKENS),
        Method("Cosine head (ArcFace)", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8),
               weights.Cosine(8, 5)), ROWS),
        Method("Equiangular Basis Vectors", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8),
               weights.Equiangular(8, 5)), ROWS),
        Method("Basis transform (BT²)", lambda: weights.Transformed(6, 8), ROWS),
        Method("LoRA", lambda: _linear(weights.LowRank(6, 8))(), ROWS),
        Method("DoRA", lambda: _linear(weights.Decomposed(6, 8))(), ROWS),
        Method("Temperature scaling", lambda: Compound(_temperature, {"temperature": torch.tensor(1.7)},
               first=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), last=nn.Linear(8, 4)), ROWS),
        Method("BatchFormer, auxiliary heads", lambda: Compose(_branch, first=_conv(), norm=nn.BatchNorm2d(8),
               aux=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 4, 1)), IMAGES),
        Method("Batch statistics at inference (DisCoPatch)",
               _images(nn.BatchNorm2d(8, track_running_stats=False)), IMAGES),
        Method("Region Norm", lambda: Compose(_with_mask, first=_conv(), norm=norms.RegionNorm(8),
               last=nn.Conv2d(8, 4, 1)), ((2, 3, 6, 5), (2, 1, 6, 5))),
        Method("Conditional BatchNorm", _with_condition(norms.ConditionalBatchNorm(8, 6)),
               ((2, 3, 6, 5), (2, 6))),
        Method("AdaGN", _with_condition(norms.AdaptiveGroupNorm(8, 6)), ((2, 3, 6, 5), (2, 6))),
        Method("Poincaré norm", _tokens(norms.Poincare(8)), TOKENS),
        Method("Implicit layers", lambda: Compose(_fixed_point, norm=nn.BatchNorm1d(6), of=nn.Linear(6, 6),
               last=nn.Linear(6, 4)), ROWS),
        Method("Binary weights", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(),
               weights.Binary(8, 4)), ROWS),
        Method("Binary convolutions (MST, BiPer, ReSTE)", lambda: _layer(weights.BinaryConv(3, 8, 3))(), IMAGES),
        Method("Learned codebook", Codebook, ROWS),
        Method("Sparse weights (AutoSparse)", lambda: _linear(weights.sparse(nn.Linear(6, 8)))(), ROWS),
    ]  # fmt: skip


# sites that fold, sites that stay, and why they do
EXPECTED: dict[str, tuple[int, int, str]] = {
    "BatchNorm": (1, 0, ""),
    "Ghost BatchNorm": (1, 0, ""),
    "BatchNorm of recent batches": (1, 0, ""),
    "EstBN": (4, 0, ""),
    "Online Normalization": (4, 1, ""),
    "Batch-Channel Normalization": (1, 1, "NF105"),
    "PowerNorm, GroupScaling": (3, 1, ""),
    "UN": (3, 0, ""),
    "RepBN, PRepBN": (2, 0, ""),
    "EvoNorm B0": (2, 2, "NF105 NF134"),
    "EvoNorm B1": (2, 1, "NF134"),
    "EvoNorm B2": (2, 1, "NF134"),
    "EvoNorm S0": (2, 2, "NF105 NF134"),
    "IBN-a": (1, 1, "NF105"),
    "IBN-b": (0, 1, ""),
    "InstanceNorm": (0, 1, ""),
    "GroupNorm": (0, 1, ""),
    "LayerNorm": (0, 1, ""),
    "RMSNorm": (0, 1, ""),
    "RMSNorm by hand": (1, 1, ""),
    "RMSNorm, 1 + w": (1, 1, ""),
    "RMSNorm in float32": (1, 1, ""),
    "RMSNorm, eps outside the root": (1, 1, "NF134"),
    "LayerNorm([1, 8])": (0, 1, "NF116"),
    "DyT": (2, 1, "NF105"),
    "Derf": (2, 2, "NF105 NF115"),
    "TaperNorm, FakeLN": (3, 0, ""),
    "Weight Norm": (1, 0, ""),
    "Spectral Norm": (1, 0, ""),
    "Weight conditioning": (1, 0, ""),
    "Orthogonal weights": (1, 0, ""),
    "Weight standardisation, std + eps": (1, 0, ""),
    "Weight standardisation, var + eps": (1, 0, ""),
    "Weight standardisation by batch_norm": (2, 0, ""),
    "Scaled weight standardisation (NFNet)": (1, 0, ""),
    "FedWon": (0, 0, ""),
    "SELU": (0, 0, ""),
    "SkipInit": (1, 0, ""),
    "Fixup": (3, 1, "NF105"),
    "LayerScale": (1, 0, ""),
    "Graph transformer, BatchNorm behind the residual": (0, 1, "NF104"),
    "CrossQ policy": (3, 0, ""),
    "Shared weights, private LayerNorms": (0, 2, ""),
    "Cosine head (ArcFace)": (1, 1, "NF134"),
    "Equiangular Basis Vectors": (1, 1, "NF134"),
    "Basis transform (BT²)": (2, 0, ""),
    "LoRA": (1, 0, ""),
    "DoRA": (1, 0, ""),
    "Temperature scaling": (2, 0, ""),
    "BatchFormer, auxiliary heads": (1, 0, ""),
    "Batch statistics at inference (DisCoPatch)": (0, 1, "NF101"),
    "Region Norm": (1, 2, "NF112 NF134"),
    "Conditional BatchNorm": (1, 0, ""),
    "AdaGN": (0, 1, "NF135"),
    "Poincaré norm": (1, 2, "NF134"),
    "Implicit layers": (0, 6, "NF105"),
    "Binary weights": (1, 0, ""),
    "Binary convolutions (MST, BiPer, ReSTE)": (1, 0, ""),
    "Learned codebook": (1, 0, ""),
    "Sparse weights (AutoSparse)": (1, 0, ""),
}
