"""A graph that was captured at fixed sizes, evaluated in a field at smaller ones.

What a size has become is learned as ops run: where 197 at the capture is 10 now, a 197 among the numbers of the
graph means 10, and of a constant with 197 rows 10 are read. A size that became two others, and one of which
nothing is known, is worked out from the number of elements; where that fails too, so does the call, and the graph
has to be evaluated at its own sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.field import Elements, Field
from normfold.ir.expressions import is_static

_SIZES = frozenset({"size", "shape", "sizes", "split_sizes", "split_size", "length", "end"})
_WHOLE = frozenset({"size", "shape"})  # all sizes of a result: one may be left to torch


class Resized(Field):
    """Elements of a prime field, in tensors of other sizes than the capture's."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """An evaluation of one graph, of which nothing is known yet."""
        self._became: dict[int, set[int]] = {}
        with super().active():
            yield

    def input(self, node: fx.Node, value: Any) -> Any:
        self._learn(node, value)
        return value

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if is_static(node) or not isinstance(node.target, torch._ops.OpOverload):
            return super().call(node, values)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        operands = [values[source] for source in node.all_input_nodes]
        if not _broadcast(operands):
            cut = {
                source: self._cut(values[source])
                for source in node.all_input_nodes
                if is_static(source)
            }
            if cut and _broadcast(
                [cut.get(source, values[source]) for source in node.all_input_nodes]
            ):
                args, kwargs = fx.map_arg(
                    (node.args, node.kwargs), lambda source: cut.get(source, values[source])
                )
        args, kwargs = self._fitted(node, args, kwargs)
        result = self.run(node, args, kwargs)
        self._learn(node, result)
        return result

    def _learn(self, node: fx.Node, value: Any) -> None:
        before, after = pytree.tree_leaves(node.meta.get("val")), pytree.tree_leaves(value)
        for old, new in zip(before, after, strict=False):
            if isinstance(old, Tensor) and isinstance(new, Elements | Tensor):
                for size, now in zip(old.shape, _shape(new), strict=False):
                    if isinstance(size, int):
                        self._became.setdefault(size, set()).add(now)

    def _now(self, size: int) -> int | None:
        """What a size has become; None where that is not clear."""
        found = self._became.get(size, set())
        return next(iter(found)) if len(found) == 1 else None

    def _cut(self, value: Any) -> Any:
        """Of a constant so much as there is of the axes that have become smaller."""
        tensor = value.value if isinstance(value, Elements) else value
        for axis, size in enumerate(tensor.shape if isinstance(tensor, Tensor) else ()):
            now = self._now(size)
            if now is not None and now < size:
                random = self.arithmetic.generator(f"{now} of {size}")
                rows = torch.randperm(size, generator=random)[:now].sort().values
                tensor = tensor.index_select(axis, rows)
        return Elements(tensor) if isinstance(value, Elements) else tensor

    def _fitted(
        self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Arguments that are sizes as they are now."""
        args, kwargs = list(args), dict(kwargs)
        for index, spec in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            place: Any = index if index < len(args) else spec.name
            held: Any = args if index < len(args) else kwargs
            if spec.name not in _SIZES or (held is kwargs and spec.name not in kwargs):
                continue
            value = held[place]
            if isinstance(value, int):
                now = self._now(value)
                held[place] = value if now is None else now
            elif isinstance(value, (list, tuple)):
                held[place] = self._sizes(value, args[0] if spec.name in _WHOLE and args else None)
        return tuple(args), kwargs

    def _sizes(self, sizes: Sequence[Any], whole: Any) -> list[Any]:
        now = [self._now(size) if isinstance(size, int) and size > 1 else size for size in sizes]
        unclear = [place for place, size in enumerate(now) if size is None]
        found = [size if other is None else other for size, other in zip(sizes, now, strict=True)]
        count = whole.value.numel() if isinstance(whole, Elements) else math.prod(found)
        if -1 not in found and len(unclear) == 1 and math.prod(found) != count:
            found[unclear[0]] = -1
        return found


def _shape(value: Elements | Tensor) -> torch.Size:
    return value.value.shape if isinstance(value, Elements) else value.shape


def _broadcast(operands: Sequence[Any]) -> bool:
    """True if tensors can be of one call that goes element by element."""
    try:
        torch.broadcast_shapes(*(_shape(x) for x in operands if isinstance(x, Elements | Tensor)))
    except RuntimeError:
        return False
    return True
