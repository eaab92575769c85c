"""The GPT with an outlier channel keeps its perplexity in integers if its stream is rotated, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples import text
from examples.gpt import GPT, load, torch_predictor
from examples.rotation import perplexities, with_outlier
from examples.train_gpt import RATE, train

pytestmark = pytest.mark.slow
WINDOWS = 100


@pytest.fixture(scope="module")
def gpt() -> GPT:
    found = with_outlier(load())
    train(found, torch.from_numpy(text.train_set()), 100, 0, 0.1 * RATE)
    return found


@pytest.mark.parametrize(
    ("setting", "allowed", "without"), [("W8A8", 0.01, 0.05), ("W4 in blocks of 32", 0.05, 0.1)]
)
def test_perplexity(setting: str, allowed: float, without: float, gpt: GPT, tmp_path: Path) -> None:
    whole = text.perplexity(torch_predictor(gpt), WINDOWS)
    plain = perplexities(gpt, setting, False, WINDOWS, tmp_path)
    rotated = perplexities(gpt, setting, True, WINDOWS, tmp_path)
    assert rotated < (1 + allowed) * whole
    assert plain > (1 + without) * whole
