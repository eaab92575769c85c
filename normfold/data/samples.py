"""Samples to train and to measure on: read once, checked against the network, served by row."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from normfold.data import checks, images, sources
from normfold.errors import LoadError, UsageError
from normfold.load import factory
from normfold.load.values import SUFFIXES, read_file

Rows = Tensor | slice


@dataclass(frozen=True, eq=False)
class Data:
    """Samples in memory, one row each.

    Attributes:
        names: of the inputs.
        columns: a tensor for each input of the network; images stay uint8 here.
        targets: int64, ``(N,)`` or ``(N, T)``, or None.
        source: where they come from, for the report.
        notes: what was done to them that the user should know.
        batch: how many rows `batches` gives at a time.
        scale: mean and deviation by which images in [0, 1] are normalised; None for other data.
        dtypes: of the inputs that are given out; as they were read when None.
        index: the rows of ``columns`` that belong to this part; None for all.
    """

    names: tuple[str, ...]
    columns: tuple[Tensor, ...]
    targets: Tensor | None
    source: str
    notes: list[str]
    batch: int = 64
    scale: tuple[Tensor, Tensor] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.columns[0] if self.index is None else self.index)

    @property
    def rows(self) -> Tensor:
        """The rows of ``columns`` that belong to this part, in order."""
        return torch.arange(len(self)) if self.index is None else self.index

    def inputs(self, rows: Rows) -> tuple[Tensor, ...]:
        """The rows of every input, in the network's order; integers stay integers."""
        at = self._at(rows)
        found = [column[at] for column in self.columns]
        if self.scale is not None:
            mean, std = self.scale
            found = [(pixels.float() / 255 - mean) / std for pixels in found]
        if self.dtypes is None:
            return tuple(found)
        return tuple(value.to(dtype) for value, dtype in zip(found, self.dtypes, strict=True))

    def labels(self, rows: Rows) -> Tensor | None:
        """The rows' labels, int64; None where there are none."""
        return None if self.targets is None else self.targets[self._at(rows)]

    def batches(
        self, size: int | None = None
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Inputs and labels of all rows in order."""
        size = size or self.batch
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.inputs(rows), self.labels(rows)

    def split(self, share: float, seed: int = 0) -> tuple[Data, Data]:
        """What remains and a held-out share, at least one row each, drawn by a seeded generator."""
        if not 0 < share < 1:
            raise UsageError("the held-out share must be above 0 and below 1", found=f"{share}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = min(max(1, round(share * len(self))), len(self) - 1)
        rest, out = self.rows[order[held:]], self.rows[order[:held]]
        return replace(self, index=rest), replace(self, index=out)

    def fingerprint(self) -> str:
        """sha256 over shapes, labels and up to 256 rows: the same for the same samples in the same order."""
        hashed = hashlib.sha256()
        rows = torch.linspace(0, len(self) - 1, min(len(self), 256)).long()
        labels = self.labels(slice(None))
        for tensor in (*self.inputs(rows), *(() if labels is None else (labels,))):
            hashed.update(f"{len(self)} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return hashed.hexdigest()

    def _at(self, rows: Rows) -> Rows:
        return rows if self.index is None else self.index[rows]


def load_data(
    source: str | Path | Iterable[Any] | Tensor,
    input_names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    limit: int | None = None,
    batch: int = 64,
    image_size: images.Size | None = None,
    normalisation: Mapping[str, Any] | None = None,
    trust_modules: Sequence[str] = (),
    shapes: Sequence[checks.Shape] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    tables: Sequence[int] | None = None,
) -> Data:
    """Read samples for a network.

    Args:
        source: an ``.npz``, ``.npy``, ``.pt``, ``.pth`` or ``.safetensors`` file; a folder of images, flat or with
            a subfolder per class; ``pkg.mod:loader``; or in memory: a tensor, a tuple (inputs in order, then
            labels), a dict by name, a torch dataset, or an iterable of batches of these forms.
        input_names: of the network's inputs, in order. A single one may also be called x, images, inputs or
            input, or be the only array that is not y, labels, targets or label.
        optional: names of them that data by name may leave out.
        limit: most rows to keep: random ones of what has a length, the first ones of an iterable.
        batch: rows that `Data.batches` gives and that a dataset is read by.
        image_size: side, or height and width, of what images are cropped to; the network's own when None.
        normalisation: ``mean`` and ``std`` of images in [0, 1], as `input_normalisation` says.
        trust_modules: packages whose classes a ``.pt`` file may use.
        shapes: of the network's inputs, None for free axes; the first axis is the rows and not compared.
        tables: for each input the rows of the table that it is looked up in, 0 where it is in none.
        dtypes: of the network's inputs, which `Data.inputs` then gives; float data for integers and the reverse
            are refused.

    Raises:
        UsageError: data that do not fit the network, or an unknown kind of source.
        LoadError: what is missing, damaged, refused as unsafe, or raises; ids that are in no row of a table.
        EnvironmentMissing: images, and no Pillow.
    """
    if limit is not None and limit < 2:
        raise UsageError("at least two samples are needed", found=f"a limit of {limit}")
    path = _existing(source)
    if path is not None and path.is_dir():
        if len(input_names) != 1:
            raise UsageError(
                "a folder of images, and the network takes more than images",
                where=str(path),
                found=", ".join(f"`{name}`" for name in input_names),
            )
        names = list(input_names)
        raw = dtypes is not None and dtypes[0] == torch.uint8
        shape = shapes[0] if shapes else None
        read = _folder(path, limit, shape, image_size, normalisation, raw)
        checks.rows(names, read.inputs, read.labels, read.where)
    else:
        asked = (input_names, optional)
        names, read = _tensors(source, path, asked, limit, batch, trust_modules)
        checks.kinds(names, read.inputs, dtypes, read.where)
    checks.sizes(names, read.inputs, shapes, read.where)
    checks.finite(names, read.inputs, read.where, read.rows)
    checks.ids(names, read.inputs, tables, read.where, read.rows)
    labels = checks.classes(read.labels, read.where)
    shifted, note = checks.shifted(names, read.inputs, labels)
    given = tuple(dtypes) if dtypes is not None else None
    columns, notes = tuple(read.inputs), read.notes + note
    return Data(tuple(names), columns, shifted, read.where, notes, batch, read.scale, given)


@dataclass
class _Read:
    inputs: list[Tensor]
    labels: Tensor | None
    where: str
    notes: list[str] = field(default_factory=list)
    scale: tuple[Tensor, Tensor] | None = None
    rows: Tensor | None = None  # which ones these are, of more


def _folder(
    path: Path,
    limit: int | None,
    shape: checks.Shape | None,
    image_size: images.Size | None,
    normalisation: Mapping[str, Any] | None,
    raw: bool,
) -> _Read:
    """Images of a folder, which are normalised when they are asked for; ``raw`` ones never are."""
    channels, height, width = images.crop_size(shape, image_size)
    scale, said = images.normaliser(normalisation, channels)
    files, labels, notes = images.listed(path)
    said = "as bytes" if raw else f"scaled to [0, 1], {said}"
    notes.append(f"images: shorter side resized, cropped at the centre to {height}x{width}, {said}")
    rows = sources.chosen_rows(len(files), limit)
    if rows is not None:
        notes.append(_drawn(rows, len(files)))
        files = [files[at] for at in rows.tolist()]
        labels = labels[rows] if labels is not None else None
    pixels = images.read(files, channels, height, width)
    return _Read([pixels], labels, f"the images in `{path}`", notes, None if raw else scale)


def _tensors(
    source: Any,
    path: Path | None,
    asked: tuple[Sequence[str], Sequence[str]],
    limit: int | None,
    batch: int,
    trust_modules: Sequence[str],
) -> tuple[list[str], _Read]:
    """The names of the inputs that the data hold, of those ``asked`` for, and what was read."""
    where = f"`{path or source}`" if path or isinstance(source, str) else "the given data"
    notes, rows = [], None
    with factory.seeded(0):  # a loader that shuffles gives the same samples every time
        content = _content(source, path, trust_modules)
        named = isinstance(content, Tensor | np.ndarray | Mapping | tuple)
        in_order = isinstance(content, list) and all(isinstance(item, Tensor) for item in content)
        if named or (in_order and path is not None):
            names = sources.taken(content, *asked)
            inputs, labels = sources.columns(content, names, where)
            total = checks.rows(names, inputs, labels, where)
            rows = sources.chosen_rows(total, limit)
            if rows is not None:
                notes.append(_drawn(rows, total))
                inputs = [column[rows] for column in inputs]
                labels = labels[rows] if labels is not None else None
        else:
            names, (inputs, labels) = sources.from_batches(content, *asked, limit, batch, where)
            inputs = [column[:limit] for column in inputs]
            labels = labels[:limit] if labels is not None else None
            checks.rows(names, inputs, labels, where)
    return names, _Read(inputs, labels, where, notes, rows=rows)


def _drawn(rows: Tensor, total: int) -> str:
    return f"{len(rows)} of {total} samples, drawn at random"


def _existing(source: Any) -> Path | None:
    """The path that ``source`` is; None for a loader and for what is in memory."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    if str(source) and path.exists():
        return path
    if isinstance(source, str) and factory.looks_like(source):
        return None
    around = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, around, 1)
    raise LoadError(
        f"there is no file or folder `{source}`",
        hint=f"did you mean `{path.parent / close[0]}`?"
        if close
        else f"data are {', '.join(SUFFIXES)}, a folder of images, or `pkg.mod:loader`",
    )


def _content(source: Any, path: Path | None, trust_modules: Sequence[str]) -> Any:
    where = str(path or source) if path or isinstance(source, str) else None
    if path is not None:
        source = read_file(path, trust_modules)
    elif isinstance(source, str):
        made = factory.resolve(source)
        iterable = isinstance(made, Iterable | Dataset)
        source = factory.invoke(made, source) if callable(made) and not iterable else made
    if not isinstance(source, Iterable | Dataset):
        raise UsageError(
            "the data are neither tensors nor batches of them",
            where=where,
            found=type(source).__name__,
            hint="a tensor, a tuple or dict of tensors, a dataset, or an iterable of batches",
        )
    return source
