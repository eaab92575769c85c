"""Which of the entries that fit is taken, and the notes that say so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from normfold.errors import LoadError
from normfold.load.difference import problems
from normfold.load.entries import Checkpoint, Path, common, is_average, quoted
from normfold.load.fit import Fit, same_numbers

_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel: how many networks are in the average
_TOLD = 6  # names in one note


def choose(compared: list[Fit], held: Checkpoint, where: str) -> Fit | None:
    """The one that fits wholly; of several the average of the others; None where none fits.

    Raises:
        LoadError: several fit, hold other numbers, and nothing tells which is meant.
    """
    fits: list[Fit] = []
    for fit in compared:
        # what only repeats a part of the file's own network is no entry
        inside = any(o.covers and not o.whole and _encloses(o, fit) for o in compared)
        if fit.whole and (not inside or _is_average(fit, held)):
            fits.append(fit)
    averaged = [fit for fit in fits if _count(fit, held) != 0]
    fits = averaged or fits
    while len(fits) > 1:
        averages = [fit for fit in fits if _is_average(fit, held, _shared(fits))]
        if not averages or len(averages) == len(fits):
            break
        fits = averages
    if not fits:
        return None
    if any(name in held.doubled for name in fits[0].names):
        raise LoadError("two tensors of the checkpoint have one name", where=where)
    if not all(_equal(fits[0], other) for other in fits[1:]):
        names = [fit.path for fit in fits]
        raise LoadError(
            f"{len(fits)} entries of the checkpoint fit the network equally",
            where=where,
            found=quoted(names, 12),
            hint="say which one: " + " or ".join(f"`--key {name}`" for name in names[:4]),
        )
    return fits[0]


def _encloses(outer: Fit, inner: Fit) -> bool:
    return outer is not inner and inner.rename.prefix.startswith(outer.rename.prefix)


def _is_average(fit: Fit, held: Checkpoint, skipped: int = 0) -> bool:
    """By its name, without the ``skipped`` parts that say nothing, or as it counts what it averaged."""
    name = ".".join(fit.path.split(".")[skipped:])
    return is_average(name) or bool(_count(fit, held))


def _count(fit: Fit, held: Checkpoint) -> int | None:
    """How many networks are in an `AveragedModel`; None for anything else."""
    parts = fit.path.split(".")
    for depth in range(len(parts)):
        value = held.tensors.get(".".join([*parts[:depth], _COUNTER]))
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return int(value)
    return None


def _equal(a: Fit, b: Fit) -> bool:
    return a.state.keys() == b.state.keys() and all(
        same_numbers(value, b.state[name]) for name, value in a.state.items()
    )


def notes(
    fit: Fit, compared: list[Fit], held: Checkpoint, asked: Checkpoint, own: dict[str, Any]
) -> list[str]:
    """What was taken, what was done to its keys, and what was left, by name.

    ``held`` is the whole checkpoint, ``asked`` what ``--key`` leaves of it, ``own`` the network's state.
    """
    rename = fit.rename
    path = entry_of(fit, held)
    start = "".join(f"{part}." for part in path)
    inner = rename.prefix[len(start) :]
    rivals = [other for other in compared if other.whole and set(other.names) != set(fit.names)]
    left = [
        name
        for name in dict.fromkeys([*held.beside(path), *_left_inside(fit, held, path)])
        if not any(f"{other.path}.".startswith(f"{name}.") for other in rivals)
    ]
    found = [f"took `{'.'.join(path)}` out of the checkpoint"] if path else []
    if inner and any(name.startswith(start) for name in held.tensors.keys() - set(fit.names)):
        found.append(f"took the keys that begin with `{inner}`, without it")
    elif inner:
        found.append(f"removed the prefix `{inner}` from every key")
    if rename.added:
        found.append(
            f"added the prefix `{rename.added}` to every key: the network has it and the file has not"
        )
    if rename.wrappers:
        parts = quoted(sorted(rename.wrappers), _TOLD)
        found.append(f"removed {parts} from within the keys: a wrapper that the network has not")
    if rivals:
        if _is_average(fit, held, _shared([fit, *rivals])):
            count = _count(fit, held)
            why = f"is the average of {count}" if count else "has the name of an average"
            found.append(f"{len(rivals) + 1} entries fit: took `{fit.path}`, which {why}")
        found += [
            f"`{other.path}` fits too: `--key {other.path}` takes it"
            + (" (an average of nothing yet)" if _count(other, held) == 0 else "")
            for other in rivals[:_TOLD]
        ]
    if _count(fit, held) == 0:
        found.append(f"`{_COUNTER}` is 0: `{fit.path}` is an average of nothing yet")
    found += _unfit_averages(compared, asked, left, own)
    if left:
        found.append(f"left of the checkpoint: {quoted(left, _TOLD)}")
    return found


def entry_of(fit: Fit, held: Checkpoint) -> Path:
    """The path of the mapping, list or module that holds all that was taken."""
    path: Path = common(held.holders[name] for name in fit.names)
    while len("".join(f"{part}." for part in path)) > len(fit.rename.prefix):
        path = path[:-1]
    return path


def _left_inside(fit: Fit, held: Checkpoint, path: Path) -> Iterator[str]:
    """First parts of the keys beside those that were taken, in the same entry."""
    start = "".join(f"{part}." for part in path)
    taken = set(fit.names)
    inner = {name[len(start) :].partition(".")[0] for name in taken}
    for key in held.keys(path):
        if start + key not in taken and key not in inner:
            first = key.partition(".")[0]
            yield start + (key if first in inner else first)


def _unfit_averages(
    compared: list[Fit], held: Checkpoint, left: Iterable[str], own: dict[str, Any]
) -> Iterator[str]:
    """An average that does not fit is what one would have wanted: say why it was not taken."""
    for name in left:
        if not is_average(name) or not any(other.startswith(f"{name}.") for other in held.tensors):
            continue
        nearest = [o for o in compared if f"{o.path}.".startswith(f"{name}.") and not o.whole]
        if nearest:
            yield f"`{name}` looks like an average and does not fit: {problems(nearest[0], own)[0]}"
        elif not any(f"{other.path}.".startswith(f"{name}.") for other in compared):
            yield f"`{name}` looks like an average and does not fit: its keys are others"


def _shared(fits: list[Fit]) -> int:
    return len(common(fit.path.split(".") for fit in fits))
