"""Inputs for a `bench`: what two ONNX files both take, and values for it that every network accepts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normfold.errors import UsageError
from normfold.load.specs import DTYPES, Spec, draw, parse
from normfold.targets.feeds import DTYPES as RUNTIME_DTYPES
from normfold.targets.feeds import Signature

KINDS = {str(dtype).removeprefix("torch."): kind for kind, dtype in RUNTIME_DTYPES.items()}


@dataclass(frozen=True)
class Inputs:
    """What the user asked of the inputs: ``--input`` texts, the size of free batches, the seed."""

    texts: Sequence[str] = ()
    batch: int = 1
    seed: int = 0


def merged(a: Signature, b: Signature) -> tuple[Signature, list[str]]:
    """Inputs that both files take, in A's order and with A's names, and what B calls each of them.

    Inputs belong together by name, or by order where the names differ; a size that one file fixes is fixed.

    Raises:
        UsageError: another number of inputs, other types, ranks or fixed sizes.
    """
    by_name = {item[0]: item for item in b}
    same = by_name.keys() == {name for name, _, _ in a}
    ordered = [by_name[name] for name, _, _ in a] if same else b
    clash = len(a) != len(b)
    both: Signature = []
    for (name, shape, kind), (_, other, own_kind) in zip(a, ordered, strict=False):
        clash |= kind != own_kind or len(shape) != len(other)
        sizes = []
        for one, two in zip(shape, other, strict=False):
            clash |= isinstance(one, int) and isinstance(two, int) and one != two
            sizes.append(two if isinstance(two, int) else one)
        both.append((name, tuple(sizes), kind))
    if clash:
        raise different(f"A takes {_listed(a)}; B takes {_listed(b)}")
    return both, [name for name, _, _ in ordered]


def values_for(signature: Signature, inputs: Inputs) -> list[Tensor]:
    """Seeded inputs: normal floats, integers 0 and 1 (token ids that every vocabulary has), masks of ones.

    Raises:
        UsageError: a free size that neither the batch nor an ``--input`` gives, or an ``--input`` that does not
            fit the files.
    """
    given = _given(signature, parse(inputs.texts))
    generator = torch.Generator().manual_seed(inputs.seed)
    known = _known_sizes(signature, given, inputs.batch)
    _require_known(signature, given, known)
    values = []
    for name, shape, kind in signature:
        dtype = RUNTIME_DTYPES.get(kind)
        if dtype is None:
            raise UsageError(
                f"no value can be made for the input `{name}`", found=f"it is a {kind}"
            )
        spec = given.get(name)
        if spec is not None:
            _require_fit(spec, name, shape, dtype)
        sizes = list(spec.shape) if spec is not None else _sizes(shape, known, inputs.batch)
        whole = not dtype.is_floating_point
        if whole and "mask" in name:
            values.append(torch.ones(sizes, dtype=dtype))
        else:
            values.append(draw(sizes, dtype, generator))
    return values


def _known_sizes(signature: Signature, given: Mapping[str, Spec], batch: int) -> dict[str, int]:
    """Free sizes by their names in the files: of the batches, and those that ``--input`` texts give."""
    known = {shape[0]: batch for _, shape, _ in signature if shape and isinstance(shape[0], str)}
    for name, shape, _ in signature:
        own = given[name].shape if name in given else ()
        known |= {size: n for size, n in zip(shape, own, strict=False) if isinstance(size, str)}
    return known


def _sizes(shape: Sequence[Any], known: Mapping[str, int], batch: int) -> list[int]:
    """The sizes of an input, without those that are not known."""
    first = [batch if size is None and axis == 0 else size for axis, size in enumerate(shape)]
    found = [size if isinstance(size, int) else _value(size, known) for size in first]
    return [size for size in found if size is not None]


def _value(size: str | None, known: Mapping[str, int]) -> int | None:
    """The number that a name, or a sum of names (``past + length``), stands for; None where one is not known."""
    if size is None or size in known:
        return known.get(size or "")
    terms = [term.strip() for term in size.split("+")]
    numbers = [int(term) if term.isdigit() else known.get(term) for term in terms]
    return sum(n for n in numbers if n is not None) if None not in numbers else None


def _require_known(
    signature: Signature, given: Mapping[str, Spec], known: Mapping[str, int]
) -> None:
    """Refuse free sizes that nothing gives, all at once; what has the same sizes follows."""
    enough, texts, missing = dict(known), [], []
    in_order = sorted(signature, key=lambda item: any("+" in str(size) for size in item[1]))
    for name, shape, _ in in_order:
        free = [
            size
            for axis, size in enumerate(shape)
            if not isinstance(size, int) and _value(size, enough) is None and (axis or size)
        ]
        if free and name not in given:
            sizes = [size if isinstance(size, int) else _value(size, enough) for size in shape]
            texts.append(f"--input {name}:{'x'.join('16' if n is None else str(n) for n in sizes)}")
            missing.append(f"`{name}` ({', '.join(map(str, shape))})")
            enough |= {size: 16 for size in free if size is not None}
    if texts:
        raise UsageError(
            "free sizes besides the batch are not given",
            found=", ".join(missing),
            hint=f"give them, for example `{' '.join(texts)}`; a size of the same name is the same",
        )


def text_of(names: Sequence[str], values: Sequence[Any]) -> str:
    """``x:1x3x224x224:f32`` for each tensor."""
    short = {dtype: text for text, dtype in DTYPES.items()}
    return " ".join(
        f"{name}:{'x'.join(map(str, value.shape)) or 'scalar'}:{short.get(value.dtype, value.dtype)}"
        for name, value in zip(names, values, strict=False)
        if isinstance(value, Tensor)
    )


def _given(signature: Signature, specs: Sequence[Spec]) -> dict[str, Spec]:
    """``--input`` texts by the file's names; those without a name in order."""
    names = [name for name, _, _ in signature]
    free = [name for name in names if name not in {spec.name for spec in specs}]
    found: dict[str, Spec] = {}
    for spec in specs:
        name = spec.name or (free.pop(0) if free else None)
        if name is None or name not in names:
            close = difflib.get_close_matches(spec.name or "", names, 1)
            raise UsageError(
                f"`--input {spec.text}`: the files have no such input",
                found=f"they take {_listed(signature)}",
                hint=f"did you mean `{close[0]}`?" if close else None,
            )
        found[name] = spec
    return found


def _require_fit(spec: Spec, name: str, shape: Sequence[Any], dtype: torch.dtype) -> None:
    fits = len(spec.shape) == len(shape) and all(
        not isinstance(size, int) or size == own
        for size, own in zip(shape, spec.shape, strict=True)
    )
    if not fits or spec.dtype not in (None, dtype):
        raise UsageError(
            f"`--input {spec.text}` does not fit the files",
            found=f"`{name}` is {'x'.join(map(str, shape))} of {str(dtype).removeprefix('torch.')}",
        )


def different(found: str) -> UsageError:
    return UsageError(
        "A and B do not take the same inputs",
        found=found,
        hint="time two networks for the same job; `--input` and `--batch` set the sizes that are free",
    )


def _listed(signature: Signature) -> str:
    return ", ".join(
        f"`{name}` {'x'.join('?' if size is None else str(size) for size in shape)} {kind}"
        for name, shape, kind in signature
    )
