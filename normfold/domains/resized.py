"""A graph that was captured at fixed sizes, evaluated in a field at smaller ones.

What a size has become is learned as ops run: where 197 at the capture is 10 now, a 197 among the numbers of the
graph means 10, and of a constant with 197 rows 10 are read. Where the number of elements shows that a size is
another, it is worked out from that; where that fails too, so does the call, and the graph has to be evaluated at
its own sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.field import Elements, Field, Unknown
from normfold.errors import last_line
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
        result = self._called_with(node, values)
        if isinstance(result, Unknown) and any(map(is_static, node.all_input_nodes)):
            cut = {
                x: self._cut(values[x]) if is_static(x) else values[x] for x in node.all_input_nodes
            }
            result = self._called_with(node, cut)
        self._learn(node, result)
        return result

    def _called_with(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = self._fitted(node, *fx.map_arg((node.args, node.kwargs), values.__getitem__))
        try:
            return self.run(node, args, kwargs)
        except Exception as error:  # anything that a kernel can raise at sizes that do not fit
            return Unknown(node, last_line(error))

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

    def _fitted(self, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments that are sizes as they are now; what the graph computes is so already."""
        args, kwargs = list(args), dict(kwargs)
        for index, spec in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if spec.name not in _SIZES:
                continue
            held: Any = args if index < len(args) else kwargs
            place: Any = index if index < len(args) else spec.name
            given = node.args[index] if held is args else node.kwargs.get(spec.name)
            if isinstance(given, int):
                held[place] = self._now(given) or given
            elif isinstance(given, (list, tuple)):
                whole = args[0] if spec.name in _WHOLE and args else None
                held[place] = self._sizes(given, held[place], whole)
        return tuple(args), kwargs

    def _sizes(self, given: Sequence[Any], values: Sequence[Any], whole: Any) -> list[Any]:
        literal = [isinstance(size, int) and size > 1 for size in given]
        now = [
            self._now(size) if known else None for size, known in zip(given, literal, strict=True)
        ]
        found = [other or size for size, other in zip(values, now, strict=True)]
        count = whole.value.numel() if isinstance(whole, Elements) else math.prod(found)
        if -1 not in found and math.prod(found) != count:
            doubtful = [at for at, known in enumerate(literal) if known and now[at] != given[at]]
            if len(doubtful) == 1:
                found[doubtful[0]] = -1
        return found


def _shape(value: Elements | Tensor) -> torch.Size:
    return value.value.shape if isinstance(value, Elements) else value.shape
