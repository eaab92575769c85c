"""Do data fit the network? What is wrong is said with the place and the first offender."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normfold.errors import LoadError, UsageError

IGNORED = -100  # the label of a position that does not count, as in torch's cross entropy
Shape = Sequence[int | None]


def rows(names: Sequence[str], inputs: Sequence[Tensor], labels: Tensor | None, where: str) -> int:
    """How many samples there are; UsageError when tensors differ, or for fewer than two."""
    every = dict(zip(names, inputs, strict=True))
    if labels is not None:
        every["labels"] = labels
    for name, tensor in every.items():
        if tensor.dim() == 0 or (len(tensor) and not tensor.numel()):
            found = f"`{name}` has the shape {tuple(tensor.shape)}"
            raise UsageError("data without samples, or empty ones", where=where, found=found)
    lengths = {name: len(tensor) for name, tensor in every.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise UsageError("the data have different numbers of samples", where=where, found=found)
    if (total := len(inputs[0])) < 2:
        raise UsageError("at least two samples are needed", where=where, found=f"{total or 'none'}")
    return total


def sizes(
    names: Sequence[str], inputs: Sequence[Tensor], shapes: Sequence[Shape] | None, where: str
) -> None:
    """UsageError for another rank, or another size of an axis that the network fixes."""
    for name, tensor, shape in zip(names, inputs, shapes or (), strict=shapes is not None):
        if _fits(tensor.shape, shape):
            continue
        last = tensor.movedim(-1, 1).shape if tensor.dim() > 2 else tensor.shape
        raise UsageError(
            f"`{name}` does not have the shape that the network takes",
            where=where,
            found=f"samples of {shown(tensor.shape)}",
            hint=f"it takes {shown(shape)}"
            + ("; channels come before height and width" if _fits(last, shape) else ""),
        )


def kinds(
    names: Sequence[str],
    inputs: Sequence[Tensor],
    dtypes: Sequence[torch.dtype] | None,
    where: str,
) -> None:
    """UsageError for floats where the network takes integers, and the reverse."""
    for name, tensor, dtype in zip(names, inputs, dtypes or (), strict=dtypes is not None):
        if tensor.dtype.is_floating_point == dtype.is_floating_point:
            continue
        raise UsageError(
            f"`{name}` does not have the type that the network takes",
            where=where,
            found=_short(tensor.dtype),
            hint=f"it takes {_short(dtype)}: store the values as the network gets them when it is used"
            + (", scaled and normalised" if tensor.dtype == torch.uint8 else ""),
        )


def ids(
    names: Sequence[str],
    inputs: Sequence[Tensor],
    tables: Sequence[int] | None,
    where: str,
    rows: Tensor | None,
) -> None:
    """LoadError, with the position, for the first id that the network's table does not have; of 0 rows: any."""
    for name, tensor, count in zip(names, inputs, tables or (), strict=tables is not None):
        if not count or tensor.dtype.is_floating_point:
            continue
        wrong = (tensor < 0) | (tensor >= count)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            raise LoadError(
                "the data hold ids that the network does not know",
                where=f"{where}, {_place(name, at, rows)}",
                found=f"{int(tensor[tuple(at)])}",
                hint=f"its table has {count} rows: ids are from 0 to {count - 1}",
            )


def _place(name: str, at: Sequence[int], rows: Tensor | None) -> str:
    """Where something stands in an array of which ``rows`` were taken."""
    first = at[0] if rows is None else int(rows[at[0]])
    return f"`{name}`[{', '.join(map(str, (first, *at[1:])))}]"


def finite(
    names: Sequence[str], inputs: Sequence[Tensor], where: str, rows: Tensor | None = None
) -> None:
    """LoadError, with the position, for the first number that is NaN or infinite."""
    for name, tensor in zip(names, inputs, strict=True):
        if not tensor.dtype.is_floating_point:
            continue
        step = max(1, (1 << 22) // max(1, tensor[0].numel()))
        for start in range(0, len(tensor), step):
            wrong = ~tensor[start : start + step].isfinite()
            if wrong.any():
                first, *rest = (int(at) for at in wrong.nonzero()[0])
                at = (start + first, *rest)
                raise LoadError(
                    "the data hold numbers that are not finite",
                    where=f"{where}, {_place(name, at, rows)}",
                    found=f"{float(tensor[at])}",
                    hint="a mask that is added to scores serves with -1e4 in place of -inf, too"
                    if float(tensor[at]) == -math.inf
                    else None,
                )


def classes(labels: Tensor | None, where: str) -> Tensor | None:
    """Labels as int64; UsageError for what is not a class index."""
    if labels is None:
        return None
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise UsageError(
            "labels must be integers, the indices of classes",
            where=where,
            found=_short(labels.dtype),
            hint="leave other targets (regression, one-hot) out: the original's outputs are what is compared with",
        )
    labels = labels.long()
    wrong = labels[(labels < 0) & (labels != IGNORED)]
    if len(wrong):
        raise UsageError(
            "labels must not be negative",
            where=where,
            found=f"{int(wrong[0])}",
            hint=f"only {IGNORED} may stand for a position that does not count",
        )
    return labels


def shifted(
    names: Sequence[str], inputs: Sequence[Tensor], labels: Tensor | None
) -> tuple[Tensor | None, list[str]]:
    """Labels that merely repeat the tokens, moved so that each position has the token after it; and a note.

    transformers wants such labels and moves them inside the network.
    """
    for name, tokens in zip(names, inputs, strict=True):
        if labels is None or labels.dim() != 2 or tokens.shape != labels.shape:
            continue
        counted = labels != IGNORED
        if tokens.dtype.is_floating_point or not torch.equal(
            tokens[counted].long(), labels[counted]
        ):
            continue
        if labels[counted].unique().numel() > 2:  # else a mask, not tokens
            moved = torch.full_like(labels, IGNORED)
            moved[:, :-1] = labels[:, 1:]
            return moved, [
                f"labels repeat `{name}`: moved by one, to the token after each position"
            ]
    return labels, []


def shown(shape: Shape) -> str:
    """``(batch, 3, ?, ?)``: a shape whose first axis is the samples."""
    return f"({', '.join(['batch', *('?' if size is None else str(size) for size in shape[1:])])})"


def _fits(found: Sequence[int], shape: Shape) -> bool:
    pairs = zip(found[1:], shape[1:], strict=False)
    return len(found) == len(shape) and all(want in (None, size) for size, want in pairs)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
