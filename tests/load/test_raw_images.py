"""Images as bytes: a file takes what a decoder gives, and answers as the network does on normalised floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.targets.runtime import optimised
from tests.nets import Compose, perturb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GIVEN: dict[str, Any] = {
    "uint8_input": True,
    "mean": ",".join(map(str, MEAN)),
    "std": ",".join(map(str, STD)),
}
PICTURES = torch.randint(
    256, (5, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def normalised(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in (MEAN, STD))
    return (pictures / 255 - mean) / std


def net(padding: int = 1, mode: Any = "zeros") -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=padding, padding_mode=mode),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    )


def answers(folder: Path, pictures: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(next(folder.glob("*.onnx")))
    (source,) = session.get_inputs()
    assert source.type == "tensor(uint8)"
    return torch.from_numpy(session.run(None, {source.name: pictures.numpy()})[0])


@pytest.mark.parametrize(("padding", "mode"), [(0, "zeros"), (1, "zeros"), (1, "reflect")])
def test_bytes_give_what_normalised_floats_give(padding: int, mode: str, tmp_path: Path) -> None:
    """At borders too, where a zero of the normalised image is the mean."""
    network = net(padding, mode)
    result = normfold.convert(
        network, inputs=(torch.randn(2, 3, 12, 10),), output=tmp_path, **GIVEN
    )
    assert result.ok
    assert result.report.certificates()[-1].state == "certified"
    assert any("as bytes" in note for note in result.report.notes)
    with torch.no_grad():
        expected = network(normalised(PICTURES))
    torch.testing.assert_close(answers(tmp_path, PICTURES), expected, rtol=1e-4, atol=1e-5)
    left = result.report.counts()["constant"].get("left", 0)
    assert left == int((padding, mode) == (1, "zeros"))  # one addition is the cheapest there


FIRST = {  # ops of the runtime from the bytes to the first convolution
    ("ort-x86", 0): set(),
    ("ort-x86", 1): {"QLinearAdd"},
    ("ort-arm", 0): {"Cast", "QuantizeLinear"},  # its grids are signed
}


@pytest.mark.parametrize(("target", "padding"), FIRST)
def test_integers_take_bytes(target: str, padding: int, tmp_path: Path) -> None:
    """Bytes are on a grid as they come; the mean that zero padding leaves is taken off in integers."""
    network = net(padding)
    result = normfold.convert(
        network,
        inputs=(torch.randn(2, 3, 12, 10),),
        quantize="int8",
        keep_if_faster=False,
        target=target,
        output=tmp_path,
        **GIVEN,
    )
    assert result.ok
    with torch.no_grad():
        expected = network(normalised(PICTURES))
    error = (answers(tmp_path, PICTURES) - expected).square().mean() / expected.var()
    assert error < 0.02
    optimised(next(tmp_path.glob("*.onnx")), tmp_path / "run.onnx")
    graph = onnx.load(tmp_path / "run.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    node, found = next(n for n in graph.node if n.op_type == "QLinearConv"), set[str]()
    while (node := makers.get(node.input[0])) is not None:
        found.add(node.op_type)
    assert found - {"Transpose"} == FIRST[target, padding]


class Echo(nn.Module):
    """A network that returns the normalised image too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x


def test_an_image_that_is_returned_is_not_rounded(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given: dict[str, Any] = {"quantize": "int8", "keep_if_faster": False, **GIVEN}
    result = normfold.convert(Echo(), inputs=(torch.randn(2, 3, 12, 10),), output=tmp_path, **given)
    assert result.ok
    session = onnxruntime.InferenceSession(next(tmp_path.glob("*.onnx")))
    _, image = session.run(None, {session.get_inputs()[0].name: PICTURES.numpy()})
    torch.testing.assert_close(torch.from_numpy(image), normalised(PICTURES), rtol=1e-5, atol=1e-5)


def test_samples_are_bytes(tmp_path: Path) -> None:
    """A folder of images, and an array; floats are refused."""
    from PIL import Image

    for place, picture in enumerate(PICTURES):
        pixels = picture.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    given: dict[str, Any] = {"quantize": "int8", "inputs": (torch.randn(2, 3, 12, 10),)}
    for data in (str(tmp_path), PICTURES):
        result = normfold.convert(net(), data=data, export=(), **given, **GIVEN)
        assert result.ok
        ranges = result.report.quantization[0].evidence
        assert ranges is not None
        assert "5 samples" in ranges.source
    with pytest.raises(UsageError, match="float"):
        normfold.convert(net(), data=torch.rand(5, 3, 12, 10), export=(), **given, **GIVEN)


def test_what_the_network_says_is_taken() -> None:
    network: Any = net()
    network.pretrained_cfg = {"mean": MEAN, "std": STD}
    made = normfold.convert(
        network, inputs=(torch.randn(2, 3, 12, 10),), uint8_input=True, export=()
    )
    assert any("mean 0.485|0.456|0.406" in note for note in made.report.notes)


def test_a_folder_says_it(tmp_path: Path) -> None:
    from normfold.load.raw_images import _of_folder

    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": MEAN, "image_std": STD, "do_normalize": True}))
    assert _of_folder(str(tmp_path)) == {"mean": list(MEAN), "std": list(STD)}
    file.write_text(json.dumps({"image_mean": MEAN, "image_std": STD, "do_normalize": False}))
    assert _of_folder(str(tmp_path)) == {"mean": [0.0], "std": [1.0]}
    for other in ({"rescale_factor": 1 / 127.5}, {"do_rescale": False}):
        file.write_text(json.dumps({"image_mean": MEAN, "image_std": STD, **other}))
        assert _of_folder(str(tmp_path)) is None
    file.write_text("{")
    assert _of_folder(str(tmp_path)) is None
    assert _of_folder(net()) is None


def test_half_precision_takes_bytes(tmp_path: Path) -> None:
    result = normfold.convert(
        net(), inputs=(torch.randn(2, 3, 12, 10),), precision="fp16", output=tmp_path, **GIVEN
    )
    assert result.ok
    with torch.no_grad():
        expected = net()(normalised(PICTURES))
    found = answers(tmp_path, PICTURES).float()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"uint8_input": True}, "nothing says what images are normalised by"),
        ({"uint8_input": True, "mean": "0.5"}, r"normalised by \(std\)"),
        ({"uint8_input": True, "mean": "0.5", "std": "0"}, "above zero"),
        ({"uint8_input": True, "mean": "0.5,0.5", "std": "1"}, "for each channel"),
        ({"uint8_input": True, "mean": "a", "std": "1"}, "not numbers"),
        ({"mean": "0.5"}, "images are taken as they are"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        normfold.convert(net(), inputs=(torch.randn(2, 3, 12, 10),), export=(), **given)


def test_a_network_without_images() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.head(x)

    network = Compose(forward, head=nn.Linear(6, 3)).eval()
    with pytest.raises(UsageError, match="has not one input of images"):
        normfold.convert(network, inputs=(torch.randn(2, 6),), export=(), **GIVEN)


def test_the_network_itself_is_not_changed() -> None:
    network = net()
    x = torch.randn(2, 3, 12, 10)
    before = network(x)
    normfold.convert(network, inputs=(x,), export=(), **GIVEN)
    assert torch.equal(network(x), before)
    assert np.isfinite(before.detach().numpy()).all()


def test_numbers_of_images_from_0_to_255() -> None:
    given: dict[str, Any] = {
        "uint8_input": True,
        "mean": "123.675,116.28,103.53",
        "std": "58.4,57.1,57.4",
    }
    with pytest.raises(UsageError, match="from 0 to 1") as caught:
        normfold.convert(net(), inputs=(torch.randn(2, 3, 12, 10),), export=(), **given)
    assert "by 255" in str(caught.value.hint)


class Pooled(nn.Module):
    """The first block of ENet: a pool of the image beside a convolution."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, 2, padding), nn.BatchNorm2d(8)
        self.pool, self.last = nn.MaxPool2d(3, 2, padding), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.norm(torch.cat([self.conv(x), self.pool(x)], 1))))


@pytest.mark.parametrize("how", ["bytes", "fold-input"])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_largest_byte_is_the_largest_pixel(how: str, padding: int, tmp_path: Path) -> None:
    given: dict[str, Any] = GIVEN
    if how == "fold-input":
        means, stds = ("|".join(map(str, part)) for part in (MEAN, STD))
        given = {
            "passes": f"canonicalize,fold-input{{mean={means} std={stds}}},fold-affine,restore,bake"
        }
    network = perturb(Pooled(padding))
    made = normfold.convert(network, inputs=(normalised(PICTURES),), output=tmp_path, **given)
    assert made.ok
    assert {item.state for item in made.report.certificates()} == {"certified"}
