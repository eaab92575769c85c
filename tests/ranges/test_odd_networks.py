"""Networks that users put on grids and we had not thought of: from the command to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.errors import LoadError, UsageError
from tests.nets import Compose, perturb

IMAGES = torch.randn(32, 3, 12, 12)
FORBIDDEN = torch.tensor([0, 1, 0, 0, 1, 0]).bool()


class Language(nn.Module):
    """A causal language model with a tied head and 16 learned positions."""

    def __init__(self, words: int = 50, width: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(16, width)
        self.block = nn.TransformerEncoderLayer(
            width, 4, 64, batch_first=True, norm_first=True, dropout=0
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        x = self.words(ids) + self.places(torch.arange(length))
        found: Tensor = self.head(self.norm(self.block(x, src_mask=mask)))
        return found


def cnn() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
    )
    return perturb(net)


def made(
    forward: Any, folder: Path, **modules: nn.Module
) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """The result in int8, and what its file gives for the images."""
    onnxruntime = pytest.importorskip("onnxruntime")
    result = normfold.convert(
        Compose(forward, **modules).eval(),
        data=IMAGES,
        quantize="int8",
        keep_if_faster=False,
        output=folder,
    )
    assert result.ok
    session = onnxruntime.InferenceSession(next(folder.glob("*.onnx")))
    return result, session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
def test_prompts_are_no_longer_than_the_table_of_positions(scheme: Any, tmp_path: Path) -> None:
    result = normfold.convert(
        Language().eval(),
        inputs=(torch.randint(50, (2, 8)),),
        dynamic=("ids:1",),
        quantize=scheme,
        output=tmp_path,
    )
    assert result.ok


def test_what_is_infinite_in_both_is_no_error(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found.masked_fill(FORBIDDEN, -torch.inf)

    result, (answer,) = made(forward, tmp_path, inner=cnn())
    assert (answer[:, FORBIDDEN.numpy()] == -np.inf).all()
    assert result.report.quantization[0].drift["snr_db"] > 20


def test_an_input_that_is_returned_keeps_its_floats(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x, self.inner(x), x.flip(-1)

    _, (same, _, mirrored) = made(forward, tmp_path, inner=cnn())
    assert np.array_equal(same, IMAGES.numpy())
    assert np.array_equal(mirrored, IMAGES.numpy()[..., ::-1])


@pytest.mark.slow
def test_tables_of_embeddings_count_for_a_target_of_size(tmp_path: Path) -> None:
    net, sizes = Language(1000, 64).eval(), {}
    example = (torch.randint(1000, (2, 16)),)
    for share in (None, 0.9):
        result = normfold.convert(
            net,
            inputs=example,
            quantize="int8",
            target_size=share,
            keep_if_faster=False,
            output=tmp_path,
        )
        assert result.ok
        sizes[share] = next(tmp_path.glob("*.onnx")).stat().st_size
    assert sizes[0.9] < sizes[None]
    mixed = result.report.quantization[0].mixed
    assert mixed is not None
    assert mixed.bits["head"] == 8  # tied to the table, which has a byte for each weight
    positions = 16 * 64
    assert mixed.cost <= 0.9 * (positions + sum(count for _, count, _ in mixed.layers))


def test_a_network_without_layers_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.relu(x) * 2 + F.avg_pool2d(x, 3, 1, 1)

    for scheme in ("int8", "int8-weights"):
        with pytest.raises(UsageError, match="nothing to put on a grid"):
            normfold.convert(Compose(forward).eval(), data=IMAGES, quantize=scheme)


def test_a_mask_of_infinities_among_samples_has_a_hint() -> None:
    data = IMAGES.clone()
    data[3, 0, 0, 0] = -torch.inf
    with pytest.raises(LoadError, match="not finite") as caught:
        normfold.convert(cnn(), data=data, quantize="int8")
    assert "-1e4" in str(caught.value.hint)


def test_a_metric_that_gives_nan_is_refused() -> None:
    with pytest.raises(UsageError, match="gives NaN for the original"):
        normfold.convert(
            cnn(),
            data=IMAGES,
            quantize="int8",
            metric="tests.ranges.test_odd_networks:nothing",
            max_drop=5,
        )


def nothing(outputs: Tensor, labels: Tensor) -> float:
    """A metric that gives no number."""
    return float("nan")
