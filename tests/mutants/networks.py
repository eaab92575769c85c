"""Small networks of all kinds, as `normfold.convert` makes them, and what judged them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from examples.efficient import EfficientNet
from examples.gpt import GPT
from examples.nets import MobileNetV2, ResNet, Stage, ViT
from examples.swin import Swin
from normfold.ir import Graph
from normfold.judge.files import Judge
from normfold.report.verdict import Verdict
from normfold.rewrite import parse, run_pipeline
from normfold.targets.order import Draft
from tests.judge.test_certificate import images
from tests.nets import RepBlock, perturb
from tests.ranges.nets import made_residual, made_speaker
from tests.train.nets import patches
from tests.zoo.detectors import suppressed
from tests.zoo.ln_models import shift_means
from tests.zoo.models import perturb as perturbed
from tests.zoo.transformers_models import create, enliven

ROWS = 8  # fresh inputs


class ScaledBlock(nn.Module):
    """A ConvNeXt block: depthwise convolution, LayerNorm over channels, MLP, LayerScale of 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = (
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.LayerNorm(width),
        )
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """Images to 5 classes through blocks whose branches count for a millionth."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(ScaledBlock(width), ScaledBlock(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """Boxes (N,6,4) and scores (N,6) of the best six of 25 places; covered ones have score 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.body, self.last = nn.Conv2d(12, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.boxes, self.scores = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.norm(self.stem(x)))
        x = F.silu(self.last(self.body(x)))
        sides = self.boxes(x).flatten(2).transpose(1, 2)
        boxes = torch.cat([sides[..., :2], sides[..., :2] + F.softplus(sides[..., 2:])], -1)
        return suppressed(boxes, self.scores(x).flatten(1).sigmoid(), most=6)


def _scaled() -> nn.Module:
    net = perturb(Scaled())
    with torch.no_grad():
        for block in net.blocks:  # type: ignore[union-attr]
            block.scale.copy_(1e-6 * (0.5 + torch.rand(block.scale.shape)))
    return net


def _streams(module: nn.Module) -> nn.Module:
    """Nothing at its default, and every writer of a stream with a mean of its own."""
    return shift_means(perturbed(module.eval()))


def _transformer() -> nn.Module:
    """A ViT of two blocks with LayerScale and a class token, 16x16 images."""
    return _streams(ViT(16, 4, 24, 2, 2, 32, 5))


def _gpt() -> nn.Module:
    """Causal attention, learned positions, a table that is also the head."""
    net = GPT(31, 12, 24, 2, 2).eval()
    enliven(net)
    return _streams(net)


def _cait() -> nn.Module:
    from tests import torchvision_shim

    torchvision_shim.install()
    from timm.models.cait import Cait

    made = Cait(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5, mlp_ratio=2.0
    )
    return _streams(made)


def _hugging(name: str) -> nn.Module:
    from tests import torchvision_shim

    torchvision_shim.install()
    return _streams(create(name)[0])


def _distilling() -> dict[str, Any]:
    samples = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    training = normfold.Train(steps=20, batch_size=32, evaluations=2)
    return {"to": "prepbn", "data": (samples,), "training": training, "max_drop": 100.0}


@dataclass(frozen=True)
class Network:
    """How to make one.

    Attributes:
        shapes: of the inputs, batch of 2.
        vocabulary: of inputs that are ids; 0 where inputs are floats.
        options: of `normfold.convert`, as a user gives them.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    options: Callable[[], dict[str, Any]] = dict
    vocabulary: int = 0


def _to(name: str, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"to": name, **more}


def _integers(scheme: str, *shape: int) -> Callable[[], dict[str, Any]]:
    def options() -> dict[str, Any]:
        data = torch.randn(64, *shape, generator=torch.Generator().manual_seed(5))
        return {"quantize": scheme, **({"data": (data,)} if shape else {})}

    return options


def _stack(*blocks: nn.Module) -> nn.Module:
    return perturb(nn.Sequential(*blocks))


SMALL_IMAGE = ((2, 3, 16, 16),)
TOKENS = ((2, 7),)
NETWORKS: dict[str, Network] = {
    "convolutions": Network(lambda: perturb(images()), ((2, 3, 17, 13),)),
    "resnet": Network(lambda: perturb(ResNet((1, 1), (6, 10), 5)), SMALL_IMAGE),
    "mobilenet": Network(
        lambda: perturb(MobileNetV2((Stage(2, 8, 1, 1), Stage(2, 12, 2, 2)), 8, 16, 5)), SMALL_IMAGE
    ),
    "efficientnet": Network(
        lambda: perturb(EfficientNet((Stage(2, 8, 1, 1), Stage(2, 12, 1, 2)), 8, 16, 5)),
        SMALL_IMAGE,
    ),
    "repvgg": Network(
        lambda: _stack(
            RepBlock(), nn.ReLU(), RepBlock(), nn.ReLU(), nn.Flatten(2), nn.Linear(30, 3)
        ),
        ((2, 4, 5, 6),),
    ),
    "layerscale": Network(_scaled, SMALL_IMAGE, _to("rmsnorm")),
    "vit": Network(_transformer, SMALL_IMAGE, _to("rmsnorm")),
    "vit-compressed": Network(_transformer, SMALL_IMAGE, _to("crmsnorm")),
    "vit-rotated": Network(_transformer, SMALL_IMAGE, _to("rmsnorm", rotate=True)),
    "cait": Network(_cait, SMALL_IMAGE, _to("rmsnorm")),
    "swin": Network(
        lambda: _streams(Swin(8, (16, 32), (2, 1), (2, 4), 5)),
        ((2, 3, 32, 32),),
        _to("rmsnorm"),
    ),
    "gpt": Network(_gpt, TOKENS, _to("rmsnorm"), 31),
    "bert": Network(lambda: _hugging("bert"), TOKENS, _to("rmsnorm"), 61),
    "t5": Network(lambda: _hugging("t5"), ((2, 7), (2, 5)), _to("folded"), 61),
    "detector": Network(lambda: perturb(Detector()), SMALL_IMAGE),
    "resnet-half": Network(
        lambda: perturb(ResNet((1, 1), (6, 10), 5)), SMALL_IMAGE, _to("folded", precision="fp16")
    ),
    "vit-half": Network(_transformer, SMALL_IMAGE, _to("rmsnorm", precision="fp16")),
    "resnet-int8": Network(made_residual, ((2, 3, 12, 10),), _integers("int8", 3, 12, 10)),
    "speaker": Network(made_speaker, TOKENS, _to("rmsnorm"), 40),
    "speaker-dynamic": Network(made_speaker, TOKENS, _integers("int8-dynamic"), 40),
    "speaker-weights": Network(made_speaker, TOKENS, _integers("int8-weights"), 40),
    "distilled": Network(patches, ((2, 3, 8, 8),), _distilling),
}


@dataclass(frozen=True)
class Made:
    """One network, converted and judged.

    Attributes:
        original: what the result is compared with: for a distilled network the trained student.
        unbaked: the exact rewrites of it; None where there are none.
        result: the graph of the file.
        draft: the written file.
    """

    name: str
    network: Network
    original: Graph
    unbaked: Graph
    result: Graph
    judge: Judge
    draft: Draft

    def fresh(self, seed: int, rows: int = ROWS) -> list[Tensor]:
        """Inputs that no verdict has seen."""
        return inputs_of(self.network, rows, 7919 + seed)


def inputs_of(network: Network, rows: int, seed: int) -> list[Tensor]:
    """Random inputs of so many rows; ids are drawn from the whole vocabulary."""
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, network.vocabulary, (rows, *shape[1:]), generator=random)
        if network.vocabulary
        else torch.randn(rows, *shape[1:], generator=random)
        for shape in network.shapes
    ]


def make(name: str, folder: Path) -> Made:
    """Convert a network as a user would; its file and companions are kept in ``folder``."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    module, inputs = network.build(), tuple(inputs_of(network, 2, 1))
    with _recorded(folder) as found:
        converted = normfold.convert(
            module, inputs=inputs, output=folder / "out", **network.options()
        )
    assert converted.ok, (name, converted.report.failures())
    ((judge, draft),) = found
    assert judge.verifier is not None
    original = judge.verifier.graph
    text = converted.report.pipeline
    if converted.report.training is not None:
        text = "canonicalize,fold-affine,restore"
    exact = [str(item) for item in parse(text)]
    exact = exact[: exact.index("bake")] if "bake" in exact else exact
    unbaked, _ = run_pipeline(original, parse(",".join(exact)))
    result = converted.graph
    return Made(name, network, original, unbaked, result, judge, draft)


@contextmanager
def _recorded(folder: Path) -> Iterator[list[tuple[Judge, Draft]]]:
    """Keep what judges each file, and the file, while something is converted."""
    found: list[tuple[Judge, Draft]] = []

    class Recording(Judge):
        def judge(self, draft: Draft, emit: Callable[[Any], None]) -> Verdict:
            exact = self.half_budget is None and self.promise is None
            own = self._own() if exact else {}  # while its place is there
            given = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
            path = Path(shutil.copy(draft.path, folder))
            files = tuple(Path(shutil.copy(file, folder)) for file in draft.files)
            judge = Judge(**{**given, "plain": lambda: own})
            found.append((judge, replace(draft, path=path, files=files)))
            return super().judge(draft, emit)

    with patch("normfold.steps.deliver.Judge", Recording):
        yield found
