"""What calibration data can be read from, brought to one form: a tensor per input of the network, and labels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from normfold.errors import LoadError, NormfoldError, UsageError, last_line
from normfold.load import factory

INPUTS = ("x", "images", "inputs", "input")
LABELS = ("y", "labels", "targets", "label")
Columns = tuple[list[Tensor], Tensor | None]


def columns(content: Any, names: Sequence[str], where: str) -> Columns:
    """A tensor for each name and the labels, out of one tensor, several in order, or several by name.

    Raises:
        UsageError: too many, too few, unknown names, or values that are not numbers.
    """
    if isinstance(content, Mapping):
        return _by_name(content, names, where)
    if not isinstance(content, (tuple, list)):
        content = (content,)
    values = [_tensor(value, where) for value in _flat(content)]
    if len(values) not in (len(names), len(names) + 1):
        raise UsageError(
            "the number of tensors does not fit the network",
            where=where,
            found=f"{len(values)}",
            hint=f"{_listed(names)}, in this order, then labels if there are any; or give them by name",
        )
    return values[: len(names)], values[len(names)] if len(values) > len(names) else None


def taken(content: Any, names: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """The names of the inputs that data hold, of those that a network takes.

    Data by name may have parts of nested inputs (``batch.image``), and leave out what is ``optional``; others have
    what is not, in order.
    """
    held = [str(key) for key in content] if isinstance(content, Mapping) else []
    found: list[str] = []
    for name in names:
        inside = [key for key in held if key == name or key.startswith(f"{name}.")]
        found += inside or ([name] if name not in optional else [])
    return found or list(names[:1])


def from_batches(
    source: Iterable[Any],
    names: Sequence[str],
    optional: Sequence[str],
    limit: int | None,
    batch: int,
    where: str,
) -> tuple[list[str], Columns]:
    """The batches of an iterable, or of a dataset, put together: at least ``limit`` rows where there are so many.

    Returns:
        The names of the inputs (`taken`), and their tensors.

    Raises:
        UsageError: a batch that does not fit the network or the batches before it.
        LoadError: the iterable raised an exception, or has no batch.
    """
    if isinstance(source, torch_data.Dataset):
        source = torch_data.DataLoader(_some(source, limit), batch_size=batch)
    parts: list[list[Tensor]] = []
    rows = 0
    for at, content in enumerate(_guarded(source, where)):
        here = f"{where}, batch {at}"
        held = taken(content, names, optional)
        inputs, labels = columns(content, held, here)
        part = [*inputs, labels] if labels is not None else inputs
        if any(tensor.dim() == 0 for tensor in part):
            raise UsageError("a batch is a tensor with a row per sample", where=here)
        if parts and _form(part) != _form(parts[0]):
            raise UsageError(
                "the batches differ",
                where=here,
                found=f"{_form(part)}, before {_form(parts[0])}",
                hint="labels in all or none, one dtype, and equal sizes: pad or crop the samples",
            )
        parts.append(part)
        rows += len(part[0])
        if limit is not None and rows >= limit:
            break
    if not parts:
        raise LoadError("the data have no batch", where=where, hint="is a generator used up?")
    together = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    return held, (together[: len(held)], together[len(held)] if len(together) > len(held) else None)


def chosen_rows(total: int, limit: int | None) -> Tensor | None:
    """Which rows to keep when there are more than ``limit``: drawn at random, since files are often sorted."""
    if limit is None or limit >= total:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(total, generator=generator)[:limit].sort().values


def _by_name(content: Mapping[Any, Any], names: Sequence[str], where: str) -> Columns:
    keys = [str(key) for key in content]
    labelled = [key for key in LABELS if key in keys and key not in names]
    left = [key for key in keys if key not in labelled]
    found = f"it holds {_listed(keys)}"
    if len(labelled) > 1:
        raise UsageError("labels are given more than once", where=where, found=_listed(labelled))
    renamed: dict[str, str] = {}
    if len(names) == 1 and names[0] not in left:
        candidates = [key for key in left if key in INPUTS] or left
        if len(candidates) == 1:
            renamed[names[0]] = candidates[0]
    used = [renamed.get(name, name) for name in names]
    extra = [key for key in left if key not in used]
    for name in names:
        if renamed.get(name, name) not in left:
            close = difflib.get_close_matches(name, extra, 1)
            raise UsageError(
                f"the data have no `{name}`, which the network takes",
                where=where,
                found=found,
                hint=f"is `{close[0]}` meant? name it `{name}`" if close else _expected(names),
            )
    if extra:
        close = difflib.get_close_matches(extra[0], [*LABELS, *names], 1)
        meant = f"did you mean `{close[0]}`? " if close else "leave it out: "
        raise UsageError(
            f"the data have `{extra[0]}`, which the network does not take",
            where=where,
            found=found,
            hint=meant + _expected(names),
        )
    inputs = [_tensor(content[key], f"{where}, `{key}`") for key in used]
    labels = _tensor(content[labelled[0]], f"{where}, `{labelled[0]}`") if labelled else None
    return inputs, labels


def _expected(names: Sequence[str]) -> str:
    return f"it takes {_listed(names)}; labels are {_listed(LABELS)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _flat(content: Iterable[Any]) -> Iterator[Any]:
    for item in content:
        if isinstance(item, (tuple, list)):
            yield from _flat(item)
        else:
            yield item


def _tensor(value: Any, where: str) -> Tensor:
    kind = type(value).__name__
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            return value.detach().cpu()
        kind = f"a tensor with the layout {value.layout}"
    if isinstance(value, np.ndarray):
        kind = f"an array of {value.dtype}"
        native = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        try:
            return torch.from_numpy(native if native.flags.writeable else native.copy())
        except TypeError:
            pass
    raise UsageError(
        "the data are neither a tensor nor an array of numbers",
        where=where,
        found=kind,
        hint="a tensor, a tuple of tensors (inputs, then labels), or a dict of them",
    )


def _some(dataset: Any, limit: int | None) -> Any:
    if isinstance(dataset, torch_data.IterableDataset):
        return dataset
    rows = chosen_rows(len(dataset), limit)
    return dataset if rows is None else torch_data.Subset(dataset, rows.tolist())


def _guarded(source: Iterable[Any], where: str) -> Iterator[Any]:
    try:
        yield from source
    except (NormfoldError, GeneratorExit):
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            "the data raised an exception",
            where=factory.origin(error) or where,
            found=last_line(error),
        ) from error


def _form(part: Sequence[Tensor]) -> str:
    return ", ".join(
        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape[1:])}" for tensor in part
    )
