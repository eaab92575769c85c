"""Zero pads in front of convolutions and pools: nothing is left of them in a file, in floats and in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from normfold.targets.integer_census import integer_census
from tests.nets import Compose, perturb
from tests.ranges.nets import conv

X = torch.randn(4, 3, 17, 16, generator=torch.Generator().manual_seed(0))
SAME = (0, 1, 1, 2)  # what TensorFlow pads: more at the end


def net(middle: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        Compose(
            lambda m, x: m.head(middle(m, F.relu(m.stem(x))).flatten(2).mean(2)),
            stem=conv(3, 8),
            conv=nn.Conv2d(8, 8, 3, stride=2),
            own=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            other=nn.Conv2d(8, 8, 3, padding=1),
            named=nn.Conv2d(8, 8, 3, padding="same"),
            turned=nn.ConvTranspose2d(8, 8, 3),
            line=nn.Conv1d(8, 8, 3),
            cube=nn.Conv3d(8, 8, 3),
            head=nn.Linear(8, 5),
        )
    )


TAKEN = {
    "conv": lambda m, x: m.conv(F.pad(x, SAME)),
    "conv with a padding": lambda m, x: m.own(F.pad(x, SAME)),
    "padded twice": lambda m, x: m.conv(F.pad(F.pad(x, (1, 0)), SAME)),
    "conv of a line": lambda m, x: m.line(F.pad(x.mean(3), (2, 0))),
    "conv of a cube": lambda m, x: m.cube(F.pad(x[:, :, None], (1, 1, 0, 0, 1, 1))),
    "two readers": lambda m, x: m.own(y := F.pad(x, (1, 1, 1, 1))) + m.other(y).relu(),
    "maximum": lambda m, x: F.max_pool2d(F.pad(x, SAME), 3, 2),
    "maximum with a padding": lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2, 1),
    "mean": lambda m, x: F.avg_pool2d(F.pad(x, SAME), 3, 2),
}
KEPT = {
    "ones": lambda m, x: m.conv(F.pad(x, SAME, value=1.0)),
    "mirrored": lambda m, x: m.conv(F.pad(x, SAME, "reflect")),
    "cropped": lambda m, x: m.conv(F.pad(x, (-1, 2, 1, 1))),
    "channels": lambda m, x: m.own(F.pad(x[:, :7], (0, 0, 0, 0, 1, 0))),
    "transposed": lambda m, x: m.turned(F.pad(x, SAME)),
    "maximum of signs": lambda m, x: F.max_pool2d(F.pad(x - 1, SAME), 3, 2),
    "maximum of padding": lambda m, x: F.max_pool2d(F.pad(x, (3, 0)), 3, 2),
    "two maxima": lambda m, x: (
        F.max_pool2d(y := F.pad(x - 1, SAME), 3, 2).mean((2, 3), True) + F.max_pool2d(y, 2, 2)
    ),
    "a maximum and its place": lambda m, x: torch.cat(
        [part.float() for part in F.max_pool2d(F.pad(x, SAME), 3, 2, return_indices=True)], 2
    ),
    "maximum, rounded up": lambda m, x: F.max_pool2d(F.pad(x, SAME), 3, 2, ceil_mode=True),
    "mean that does not count": lambda m, x: F.avg_pool2d(
        F.pad(x, SAME), 3, 2, 1, count_include_pad=False
    ),
}


def convert(middle: Any, folder: Path, **options: Any) -> tuple[Any, Counter[str]]:
    result = normfold.convert(net(middle), inputs=[X], output=folder, **options)
    assert result.ok, str(result.report)
    file = next(path for path in result.artifacts if path.suffix == ".onnx")
    return file, Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("name", [*TAKEN, *KEPT])
def test_a_reader_takes_the_zeros_in_front_of_it(name: str, tmp_path: Path) -> None:
    """The verdict compares the file with the network, which onnxruntime's own fusion of pads breaks in three cases
    that are kept; here it is only counted what is left."""
    _, ops = convert((TAKEN | KEPT)[name], tmp_path)
    assert ops["Pad"] == (name in KEPT)


@pytest.mark.parametrize("name", TAKEN)
def test_nothing_runs_in_floats_between_integers(name: str, tmp_path: Path) -> None:
    options = {"quantize": "int8", "images": 8, "synthesis_steps": 2, "max_drop": 100}
    file, ops = convert(TAKEN[name], tmp_path, **options)
    assert ops["Pad"] == 0
    assert not {"Conv", "MaxPool", "AveragePool", "Pad"} & integer_census(file).floats.keys()


@pytest.mark.parametrize("name", ["conv", "maximum"])
def test_an_engine_reads_integers_too(name: str, tmp_path: Path) -> None:
    options = {"quantize": "int8", "images": 8, "synthesis_steps": 2, "max_drop": 100}
    file, ops = convert(TAKEN[name], tmp_path, **options, target="trt")
    assert ops["Pad"] == 0
    graph = onnx.load(file).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    assert {made[node.input[0]] for node in graph.node if node.op_type == "Conv"} == {
        "DequantizeLinear"
    }
