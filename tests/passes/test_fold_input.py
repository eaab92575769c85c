"""fold-input: networks on images as they are; borders, several inputs, numbers that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb
from tests.passes.judge import golden_pass

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PASS = "fold-input{mean=0.485|0.456|0.406 std=0.229|0.224|0.225}"
TEXT = f"canonicalize,{PASS},fold-affine,restore,bake"


def net(padding: int = 1, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=padding, **options),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    )


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(part, dtype=x.dtype).reshape(-1, 1, 1) for part in (MEAN, STD))
    return (x - mean) / std


def test_golden() -> None:
    golden_pass("fold-input/conv", capture(net(), (torch.rand(2, 3, 8, 8),)), "canonicalize")


@pytest.mark.parametrize("padding", [0, 1, "reflect"])
def test_the_first_convolution_takes_it(padding: Any) -> None:
    options = {"padding_mode": "reflect"} if padding == "reflect" else {}
    module = net(1 if padding == "reflect" else padding, **options)
    graph = capture(module, (torch.rand(2, 3, 12, 12),))
    result, reports = run_pipeline(graph, parse(f"canonicalize,{PASS},fold-affine"))
    assert [item.site for item in reports[1].applied] == ["input"]
    assert not reports[2].declined
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    (got,) = Evaluator(result.module, Float64())(x)
    (wanted,) = Evaluator(graph.module, Float64())(normalised(x))
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("verify", ["final", "each"])
def test_the_verdict_and_the_file(tmp_path: Path, verify: Any) -> None:
    module = net()
    result = normfold.convert(
        module,
        passes=TEXT,
        inputs=["1x3x12x12"],
        export="onnx",
        output=tmp_path,
        name="net",
        verify=verify,
    )
    assert result.report.ok
    x = torch.rand(3, 3, 12, 12)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (got,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, module(normalised(x)).numpy(), atol=1e-5)


def test_wrong_numbers_are_seen() -> None:
    graph = capture(net(), (torch.rand(2, 3, 12, 12),))
    result, report = normfold.run(graph, TEXT)
    assert report.ok
    result.entries.clear()
    assert not normfold.verify(graph, result)


def test_which_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.row = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

        def forward(self, image: Tensor, row: Tensor) -> Any:
            return self.image(image).mean((2, 3)) + self.row(row)

    graph = capture(perturb(Two()), (torch.rand(2, 3, 8, 8), torch.rand(2, 6)))
    _, (report,) = run_pipeline(graph, parse(PASS))
    assert [item.site for item in report.applied] == ["image"]
    _, (report,) = run_pipeline(graph, parse("fold-input{mean=0.5 std=2 input=row}"))
    assert [item.site for item in report.applied] == ["row"]
    for text, words in (
        (f"{PASS},{PASS}", "`image` is normalised inside already"),
        ("fold-input{input=imgae mean=0.5}", "inputs: `image`, `row`"),
        ("fold-input{mean=0.5|0.5 input=image}", "2 numbers for 3 channels"),
        ("fold-input{mean=0.5|0.5}", "2 numbers for 3 channels"),
    ):
        with pytest.raises(UsageError) as caught:
            run_pipeline(graph, parse(text))
        assert words in str(caught.value)


def test_inputs_of_integers() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    graph = capture(module.eval(), (torch.randint(9, (2, 5, 3)),))
    with pytest.raises(UsageError, match="no input to normalise"):
        run_pipeline(graph, parse("fold-input{mean=0.5}"))


def test_one_of_two_images_has_other_channels() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.colour, self.grey = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, colour: Tensor, grey: Tensor) -> Any:
            return self.colour(colour) + self.grey(grey)

    graph = capture(perturb(Two()), (torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)))
    _, (report,) = run_pipeline(graph, parse(PASS))
    assert [item.site for item in report.applied] == ["colour"]
    assert [item.detail for item in report.declined] == ["3 numbers for 1 channels"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "fold-input{std=0}",
            "fold-input{mean=a|b}",
            "fold-input{std=-1|1}",
            "fold-input{std=inf}",
        ),
        *("fold-input{mean=nan}", "fold-input{mean=0.5|}", "fold-input{mean=0.5 mean=0.4}"),
    ],
)
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_the_text_is_read_back() -> None:
    (item,) = parse(PASS)
    assert str(item) == PASS
