"""Inputs that a verdict is based on: seeded random, x100 scale, constant rows, zeros, and the user's own.

Where the batch is dynamic they travel as the rows of one batch, whose size differs from the captured one:
one forward pass covers them all, and shows that the batch is dynamic indeed. Other free sizes are tried at a
second value that the guards of the capture accept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.graph import Entry
from normfold.ir.sizes import Sizes
from normfold.job import Source
from normfold.load.specs import is_mask, mask, parse
from normfold.ops.lookups import spread, table_rows

TRIES = 6  # sizes that are tried before it is said that the network takes no other
REACH = 70  # steps from the example's size, at least
SMALL, SMALL_IMAGE = 8, 64  # free sizes are not made smaller than this
MANY = 16  # rows of a batch that is judged though nobody gave samples of it
KINDS = ("random", "x100", "constant", "zeros")
# what half precision is measured and judged on: the other cases overflow or underflow in half precision
TYPICAL = ("random", "constant")


@dataclass(frozen=True)
class Case:
    """Flat inputs of one forward pass.

    Attributes:
        rows: names of the rows of the batch; None for one whole.
        usual: half precision is judged on it, or on those of its rows that are `TYPICAL`.
    """

    name: str
    leaves: tuple[Any, ...]
    rows: tuple[str, ...] | None = None
    usual: bool = False


def cases(
    graph: Graph,
    seed: int = 0,
    samples: list[tuple[Any, ...]] | None = None,
    kinds: Sequence[str] = KINDS,
) -> list[Case]:
    """The verifier's inputs for a graph, and the user's ``samples`` (flat input tuples) when given."""
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    sizes = Sizes(graph)
    batched = [sizes.axis_of_batch(place) for place in range(len(leaves))]
    tables = table_rows(graph)
    generator = torch.Generator().manual_seed(seed)
    made = {
        kind: tuple(
            _fill(leaf, kind, generator, axis or 0, is_mask(name, leaf.dtype), rows)
            if isinstance(leaf, Tensor)
            else leaf
            for leaf, axis, name, rows in zip(leaves, batched, sizes.names, tables, strict=True)
        )
        for kind in kinds
    }
    many = {**sizes.example, sizes.batch: len(kinds)}
    if any(axis is not None for axis in batched) and sizes.accepts(many):
        rows = tuple(
            leaf
            if axis is None
            else torch.cat([made[kind][place].narrow(axis, 0, 1) for kind in kinds], axis)
            for place, (leaf, axis) in enumerate(zip(leaves, batched, strict=True))
        )
        found = [Case("rows", rows, tuple(kinds), usual=True)]
    else:
        found = [Case(kind, values, usual=kind in TYPICAL) for kind, values in made.items()]
    for trial in graph.trials:
        shapes = [leaf.shape for leaf in trial]
        found.append(Case(_text(zip(sizes.names, shapes, strict=True)), trial, usual=True))
    return found + [
        Case(f"sample {index}", tuple(sample), usual=True)
        for index, sample in enumerate(samples or [])
    ]


def fewest(of: Sequence[Case], usual: bool = False, skipped: Collection[int] = ()) -> int:
    """The place of the case of the fewest numbers; of those that are ``usual``, and not ``skipped``, if any is."""
    places = [place for place, case in enumerate(of) if case.usual or not usual] or range(len(of))
    places = [place for place in places if place not in skipped] or places
    return min(places, key=lambda place: count(of[place]))


def count(case: Case) -> int:
    """How many numbers a case has."""
    return sum(leaf.numel() for leaf in case.leaves if isinstance(leaf, Tensor))


def typical(graph: Graph, case: Case) -> tuple[Case | None, list[int]]:
    """The part of a case that half precision is judged on, None for nothing; and which of its rows that is."""
    if case.rows is None or not case.usual:
        return case if case.usual else None, []
    sizes, rows = Sizes(graph), [i for i, row in enumerate(case.rows) if row in TYPICAL]
    leaves = []
    for place, leaf in enumerate(case.leaves):
        axis = sizes.axis_of_batch(place)
        leaves.append(leaf if axis is None else leaf.index_select(axis, torch.tensor(rows)))
    names = tuple(case.rows[row] for row in rows)
    return Case(case.name, tuple(leaves), names, usual=True) if rows else None, rows


def _text(shapes: Iterable[tuple[str, Sequence[int]]]) -> str:
    """``ids:1x1 mask:1x6``: of inputs of one shape, such as those of all layers, the first."""
    found: dict[str, str] = {}
    for name, shape in shapes:
        found.setdefault("x".join(map(str, shape)), name)
    return " ".join(f"{name}:{shape}" for shape, name in found.items())


def other_sizes(graph: Graph, seed: int = 0) -> Iterator[Case]:
    """Inputs at other sizes along every free axis besides the batch, which the guards of the capture accept.

    The nearest sizes come first; nothing where no size is free, or none is accepted.
    """
    sizes = Sizes(graph)
    free = [symbol for symbol in sizes.example if symbol != sizes.batch]
    if not free:
        return
    chosen = [list(islice(_accepted(sizes, symbol), TRIES)) for symbol in free]
    for values in zip(*chosen, strict=False):
        numbers = {**sizes.example, **dict(zip(free, values, strict=True))}
        if sizes.accepts(numbers):
            shapes = [sizes.shape_at(place, numbers) for place in range(len(sizes.shapes))]
            yield _case(graph, sizes.names, shapes, seed)


def single_sizes(graph: Graph, seed: int = 0) -> Iterator[tuple[Any, Case]]:
    """Inputs of which one free size is 1, and its symbol: torch.export takes for granted that none is."""
    sizes = Sizes(graph)
    for symbol in filter(sizes.may_be_one, sizes.example):
        values = {**sizes.example, symbol: 1}
        shapes = [sizes.shape_at(place, values) for place in range(len(sizes.shapes))]
        if sizes.axes_of(symbol) and all(size > 0 for shape in shapes for size in shape or ()):
            yield symbol, _case(graph, sizes.names, shapes, seed)


def own_batch(graph: Graph, seed: int = 0) -> Case | None:
    """Inputs of the example's batch, or of `MANY` where it is larger; None where other cases have as many rows."""
    sizes = Sizes(graph)
    asked = sizes.example.get(sizes.batch, 0)
    values = {**sizes.example, sizes.batch: min(asked, MANY)}
    if asked <= len(KINDS) or not sizes.accepts(values):
        return None
    shapes = [sizes.shape_at(place, values) for place in range(len(sizes.shapes))]
    return _case(graph, sizes.names, shapes, seed)


def smallest(graph: Graph, seed: int = 0, batch: int = 1) -> Case:
    """Inputs of a small batch and of small free sizes that the guards admit, where an axis is still an axis.

    Of the sizes of an image so much stays that strides leave something of it.
    """
    sizes = Sizes(graph)
    values = dict(sizes.example)
    for symbol, own in sizes.example.items():
        if symbol == sizes.batch:
            continue
        image = any(shape and len(shape) > 3 and symbol in shape[2:] for shape in sizes.shapes)
        least = min(own, SMALL_IMAGE if image else SMALL)
        for size in range(least, own):
            if sizes.accepts({**values, symbol: size}):
                values[symbol] = size
                break
    if sizes.batch is not None:
        values[sizes.batch] = batch
    shapes = [sizes.shape_at(place, values) for place in range(len(sizes.shapes))]
    if any(size < 1 for shape in shapes for size in shape or ()):
        shapes = [sizes.shape_at(place, sizes.example) for place in range(len(sizes.shapes))]
    return _case(graph, sizes.names, shapes, seed)


def entered(
    graph: Graph, given: Sequence[Case], entries: Mapping[str, Entry], exact: bool = False
) -> list[Case]:
    """What the original reads for inputs of a graph whose ``entries`` are others; ``exact``: in float64."""
    if not entries:
        return list(given)
    known = [entries.get(name) for name in graph.input_names]
    return [
        replace(
            case,
            leaves=tuple(
                leaf if entry is None else entry(leaf).to(torch.float64 if exact else leaf.dtype)
                for leaf, entry in zip(case.leaves, known, strict=True)
            ),
        )
        for case in given
    ]


def is_single(graph: Graph, case: Case, symbols: Collection[Any]) -> bool:
    """True if one of the symbols is 1 in the inputs of a case."""
    shapes = Sizes(graph).shapes if symbols else []
    return any(
        size in symbols and leaf.shape[axis] == 1
        for leaf, shape in zip(case.leaves, shapes, strict=False)
        for axis, size in enumerate(shape or ())
    )


def _accepted(sizes: Sizes, symbol: Any) -> Iterator[int]:
    """Other values of a size, from its own outwards, that the guards accept beside the other examples."""
    own = sizes.example[symbol]
    near = [own + sign * step for step in range(1, max(own, REACH)) for sign in (-1, 1)]
    for value in (*near, 2 * own):
        if value > 0 and sizes.accepts({**sizes.example, symbol: value}, symbol):
            yield value


def asked_sizes(graph: Graph, texts: Sequence[str], seed: int = 0) -> list[Case]:
    """Inputs of the sizes that the user asks to try, one case for each text.

    Raises:
        UsageError: a text that is not one, an input that is not there, a shape that the graph does not take.
    """
    sizes = Sizes(graph)
    found = []
    for spec in parse(texts):
        name = spec.name or sizes.names[0]
        if name not in sizes.names:
            raise UsageError(
                f"`--try {spec.text}`: there is no input `{name}`",
                found=f"inputs: {', '.join(f'`{item}`' for item in sizes.names)}",
            )
        place = sizes.names.index(name)
        values = sizes.solve(place, spec.shape)
        if values is None:
            own = "x".join(sizes.words(place))
            rules = sizes.rules()
            raise UsageError(
                f"`--try {spec.text}`: the captured network does not take this size",
                found=f"`{name}` is {own}" + (f"; {rules[0]}" if rules else ""),
                hint="sizes are free along the batch and the axes of `--dynamic`, from 2 on except for the batch",
            )
        shapes = [sizes.shape_at(index, values) for index in range(len(sizes.shapes))]
        found.append(_case(graph, sizes.names, shapes, seed))
    return found


def _case(
    graph: Graph, names: Sequence[str], shapes: Sequence[tuple[int, ...] | None], seed: int
) -> Case:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    generator = torch.Generator().manual_seed(seed)
    made, changed = [], []
    for name, leaf, shape in zip(names, leaves, shapes, strict=True):
        if not isinstance(leaf, Tensor) or shape is None or tuple(leaf.shape) == shape:
            made.append(leaf)
            continue
        changed.append((name, shape))
        made.append(_resized(leaf, shape, generator, name))
    return Case(_text(changed) or "the example", tuple(made))


def _resized(leaf: Tensor, shape: tuple[int, ...], generator: torch.Generator, name: str) -> Tensor:
    if leaf.is_floating_point() or leaf.is_complex():
        return _noise(shape, leaf.dtype, generator)
    if is_mask(name, leaf.dtype):
        return mask(shape, leaf.dtype, bool(leaf.reshape(-1)[0]))
    for axis, size in enumerate(shape):  # values of the example are known to be in range
        leaf = leaf.index_select(axis, torch.arange(size) % leaf.shape[axis])
    return leaf


def _noise(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    wide = torch.complex64 if dtype.is_complex else torch.float32
    return torch.randn(tuple(shape), generator=generator, dtype=wide).to(dtype)


def _cut(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """A mask whose last axis ends early: after a random place it is the opposite of what it begins with."""
    size = leaf.shape[-1]
    place = int(torch.randint(1, max(size, 2), (), generator=generator))
    behind = torch.arange(size) >= place
    return torch.where(behind, leaf[..., :1].logical_not().to(leaf.dtype), leaf)


def _fill(
    leaf: Tensor, kind: str, generator: torch.Generator, axis: int, masked: bool, rows: int
) -> Tensor:
    if masked or leaf.dtype == torch.bool:  # the first row is whole, the others have padding
        if kind in ("x100", "zeros") and leaf.dim() - 1 > axis:
            return _cut(leaf, generator)
        return leaf.roll(1, axis) if kind != "constant" and leaf.dim() else leaf
    if not (leaf.is_floating_point() or leaf.is_complex()):
        pictures = leaf.dtype == torch.uint8 and leaf.dim() == 4 and not rows
        if pictures and kind == "random":  # all bytes are in range
            return torch.randint(256, leaf.shape, generator=generator, dtype=torch.uint8)
        # the example's own values are known to be in range: keep to them
        if kind == "zeros" and int(leaf.min()) <= 0:
            return torch.zeros_like(leaf)
        if kind == "constant":
            return torch.full_like(leaf, int(leaf.reshape(-1)[0]))
        if (
            kind == "x100" and rows and leaf.numel()
        ):  # or to the rows of the table that they are looked up in
            return spread(leaf, rows, generator.initial_seed())
        return leaf.roll(1, axis) if kind == "x100" and leaf.dim() else leaf
    if kind == "zeros":
        return torch.zeros_like(leaf)
    if kind == "constant":
        return torch.full_like(leaf, 0.75)
    return (
        _noise(leaf.shape, torch.complex64 if leaf.is_complex() else torch.float32, generator)
        .mul(100 if kind == "x100" else 1)
        .to(leaf.dtype)
    )


def own_samples(graph: Graph, source: Source) -> list[tuple[Any, ...]] | None:
    """The user's own inputs as a case of the verdict: tensors given in Python, a file or a function of `--inputs`.

    None where inputs are texts, or none are given. Of a part (``source.part``), and where there is not one tensor
    for each input of the graph, what the graph was captured with stands for them. Floats get the type of that.
    """
    own = pytree.tree_leaves((graph.args, graph.kwargs))
    made = callable(source.inputs) or source.inputs_from is not None
    given = own if made or source.uint8_input else pytree.tree_leaves(source.inputs)
    if not given or any(isinstance(item, str) for item in given):
        return None
    captured = isinstance(source.model, Graph)
    tensors = all(isinstance(item, Tensor) for item in given)
    if captured and (made or len(given) != len(own) or not tensors):
        return None  # it was captured with other inputs
    if source.part is not None or len(given) != len(own) or not tensors:
        given = own
    return [
        tuple(
            value.to(leaf.dtype)
            if isinstance(leaf, Tensor) and value.is_floating_point() and leaf.is_floating_point()
            else value
            for value, leaf in zip(given, own, strict=True)
        )
    ]
