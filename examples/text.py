"""Characters of the Python standard library's source, split by file, and perplexity on them.

Nothing is shipped or fetched: every Python brings its own library. Another version of Python has other
text, so perplexities differ a little from machine to machine; on one machine nothing is random.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
Predictor = Callable[[Ids], Logits]

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))  # every other character is dropped
CONTEXT = 128
WINDOWS = 400

# Code and prose; left out are tables (encodings, pydoc_data), tests, and what distributions leave out.
_PACKAGES = (
    *("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json"),
    *("logging", "multiprocessing", "re", "sqlite3", "tomllib", "unittest", "urllib"),
    *("wsgiref", "xml", "xmlrpc", "zoneinfo"),
)
_NOT_LIBRARY = ("_sysconfigdata*", "sitecustomize*", "usercustomize*")
_VALIDATION = 12  # one file in so many
_BATCH = 50

_BYTES = VOCABULARY.encode("ascii")
_OTHERS = bytes(set(range(256)) - set(_BYTES))
_IDS = bytes.maketrans(_BYTES, bytes(range(len(_BYTES))))


def files(validation: bool) -> list[Path]:
    """The files of one side of the split, in the order of their names; the name decides the side."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = set(library.glob("*.py"))
    modules -= {path for pattern in _NOT_LIBRARY for path in library.glob(pattern)}
    for package in _PACKAGES:
        modules |= set((library / package).rglob("*.py"))
    names = sorted(path.relative_to(library).as_posix() for path in modules)
    return [library / name for name in names if _is_validation(name) == validation]


def train_set() -> Ids:
    """Characters of the training files as ids, (n,)."""
    return _read(files(validation=False))


def validation_set() -> Ids:
    """Characters of the validation files as ids, (n,)."""
    return _read(files(validation=True))


def encode(text: str | bytes) -> Ids:
    """Ids (n,) of the characters that are in the vocabulary."""
    known = text.encode("utf-8") if isinstance(text, str) else text
    return np.frombuffer(known.translate(_IDS, _OTHERS), np.uint8).astype(np.int64)


def decode(ids: Ids) -> str:
    """The text of ids (n,)."""
    return "".join(VOCABULARY[index] for index in ids)


def windows(ids: Ids, count: int = WINDOWS, context: int = CONTEXT) -> tuple[Ids, Ids]:
    """Evenly spaced windows of `ids` (n,) and the characters that follow: two (count,context)."""
    starts = np.linspace(0, len(ids) - context - 1, count).astype(np.int64)
    rows = ids[starts[:, None] + np.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:]


def perplexity(predict: Predictor, count: int = WINDOWS, context: int = CONTEXT) -> float:
    """Perplexity per character on `count` windows of the validation files, between 1 and infinity.

    `predict` maps ids (N,context) to logits (N,context,len(VOCABULARY)); guessing gives 96.
    """
    inputs, targets = windows(validation_set(), count, context)
    total = 0.0
    for start in range(0, count, _BATCH):
        logits = predict(inputs[start : start + _BATCH]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, targets[start : start + _BATCH, :, None], -1)[..., 0]
        total += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
    return float(np.exp(total / targets.size))


def _is_validation(name: str) -> bool:
    return zlib.crc32(name.encode()) % _VALIDATION == 0


def _read(paths: list[Path]) -> Ids:
    return encode(b"\n".join(path.read_bytes() for path in paths))
