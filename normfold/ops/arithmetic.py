"""What ops need of numbers to have a meaning there: exact arithmetic, over float64 tensors of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, fx

HIDDEN = (
    -torch.inf
)  # minus infinity: what a mask hides from a softmax. It absorbs what is added to it.


class NoMeaning(Exception):
    """An op has no meaning there. The text says why."""


class Arithmetic(Protocol):
    """Exact arithmetic. Elements lie in float64 tensors, `HIDDEN` among them.

    Attributes:
        longest: so many products of two elements can be summed in float64 without rounding.
    """

    longest: int

    def element(self, x: Any) -> Tensor:
        """The element for a Python number, or a tensor of integers or booleans; elements as they are."""

    def exact(self, x: Tensor) -> Tensor:
        """The elements for a tensor of real numbers, each of them read as a Python number is."""

    def reduce(self, x: Tensor, terms: int = 1) -> Tensor:
        """The elements for float64 integers: sums of so many products of two elements, at most `longest`.

        They take the place of the integers.
        """

    def add(self, x: Tensor, y: Tensor) -> Tensor: ...

    def sub(self, x: Tensor, y: Tensor) -> Tensor: ...

    def mul(self, x: Tensor, y: Tensor) -> Tensor: ...

    def inverse(self, x: Tensor) -> Tensor:
        """1 / x; 0 for 0."""

    def root(self, x: Tensor) -> Tensor:
        """The positive square root: root(a^2 x) = |a| root(x)."""

    def counted(self, x: Tensor) -> Tensor:
        """Elements as integers from 0 on: equal ones as equal numbers."""

    def sign(self, x: Tensor) -> Tensor:
        """1, 0 or -1, as an integer: that of a product is the product of the signs."""

    def scramble(self, x: Tensor, what: str, positive: bool = False) -> Tensor:
        """An unknown function, ``what``, of each element."""

    def tally(self, count: int | Tensor) -> Tensor:
        """1 / count."""


@dataclass(frozen=True)
class Call:
    """A call of an ATen op: its operands are elements, its arguments have the names of the schema.

    Attributes:
        values: every argument, defaults included.
    """

    node: fx.Node
    name: str
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that not every overload has."""
        return self.values.get(name, default)

    def run(self, /, **changed: Any) -> Any:
        """The op of torch, with other arguments here and there."""
        values = {**self.values, **changed}
        op: Any = self.node.target
        if op is torch.ops.aten.view.default:  # elements may lie otherwise in memory
            op = torch.ops.aten.reshape.default
        args, kwargs = [], {}
        for spec, value in zip(op._schema.arguments, values.values(), strict=True):
            if isinstance(value, torch.dtype) and value.is_floating_point:
                value = torch.float64
            if spec.kwarg_only:
                kwargs[spec.name] = value
            else:
                args.append(value)
        return op(*args, **kwargs)


def bound(node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an ATen op by name."""
    found: dict[str, Any] = {}
    op: Any = node.target
    for index, spec in enumerate(op._schema.arguments):
        if index < len(args) and not spec.kwarg_only:
            found[spec.name] = args[index]
        else:
            found[spec.name] = kwargs.get(spec.name, spec.default_value)
    return found


def axes(dims: Any, rank: int) -> list[int]:
    """The axes that an argument names; all of them where it names none."""
    if dims is None or (isinstance(dims, Sequence) and not len(dims)):
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, Sequence) else [dims])]


def number(f: Arithmetic, top: int, bottom: int = 1) -> Tensor:
    """A rational."""
    return f.element(Fraction(top, bottom))


def sides(f: Arithmetic, c: Call) -> tuple[Tensor, Tensor]:
    """The first two arguments, tensors or numbers."""
    left, right = list(c.values.values())[:2]
    return f.element(left), f.element(right)
