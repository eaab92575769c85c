"""A prime field as the numbers of a graph: equality is exact, and two networks are the same function or not.

Parameters are random elements with the signs and zeros of the real ones, inputs are random elements, and ops
compute what they are (`normfold.ops.exact`) in the arithmetic of `normfold.domains.residues`. Two networks that
are the same expression agree to the bit, whatever the elements are; two that are not agree by a rare chance only.

An op without a meaning is *uninterpreted*: random elements that its operands determine, all of them. Equal
operands give equal results, so that what is the same in front of it is the same behind it. Integers that depend on
elements (argmax, topk) are those that torch finds for the elements, which are not the real ones either.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.residues import PrimeField, are_simple
from normfold.ir.evaluation import Domain, Float64, widen
from normfold.ir.expressions import gives_other_numbers
from normfold.ir.graph import op_name
from normfold.ir.randomness import draws
from normfold.ops.arithmetic import HIDDEN, Call, NoMeaning, bound
from normfold.ops.exact import meaning_of
from normfold.ops.table import row_of

_SMALL = 64  # a constant of integers up to this is what it is: masks, identity kernels, Hadamard matrices
_FEW = 4096  # numbers that a pass adds, which may be rationals
_PIECE = 1 << 18  # numbers that are drawn at once
_FAR = -1e30


@dataclass(frozen=True)
class Elements:
    """A tensor of elements: float64 integers, and `HIDDEN`; -x is p - x."""

    value: Tensor


@dataclass(frozen=True)
class Unknown:
    """What depends on an op that cannot be evaluated.

    Attributes:
        why: what it is.
    """

    node: fx.Node
    why: str


@dataclass(frozen=True)
class Uninterpreted:
    """An op without a meaning.

    Attributes:
        why: it has none.
        fingerprint: of its operands.
    """

    why: str
    fingerprint: str


@dataclass(frozen=True)
class Reading:
    """What a parameter stands for.

    Attributes:
        exact: the numbers that it holds; else random elements of their signs.
        place: of its first number, in a memory of all parameters.
        plain: it holds numbers with a sign only: neither zeros nor minus infinities.
    """

    exact: bool
    place: int
    plain: bool


class Readings:
    """What the parameters of networks stand for, for all fields.

    Args:
        known: storages of the network's own parameters; small constants in others may be exact rationals.
    """

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self.known = known
        self._storages: dict[int, int] = {}
        self._read: dict[Any, Reading] = {}

    def of(self, value: Tensor) -> Reading:
        storage = value.untyped_storage().data_ptr()
        key = storage, value.storage_offset(), value.stride(), value.shape, value.dtype
        if key not in self._read:
            number = self._storages.setdefault(storage, len(self._storages))
            self._read[key] = Reading(
                exact=_is_whole(value) or self._is_rational(value, storage),
                place=(number << 40) + int(value.storage_offset()),
                plain=bool(((value > _FAR) & (value != 0)).all()),
            )
        return self._read[key]

    def _is_rational(self, value: Tensor, storage: int) -> bool:
        """True for numbers that a pass has put in as float64, if all stand for something simple."""
        if storage in self.known or value.dtype != torch.float64 or value.numel() > _FEW:
            return False
        return are_simple(value)


def _is_whole(value: Tensor) -> bool:
    """True for small integers; that others are not shows in the first of them."""
    return all(
        bool(((part == part.round()) & (part.abs() <= _SMALL)).all())
        for part in value.reshape(-1).split(_FEW)
    )


class Field(Domain):
    """Elements for floats, integers and booleans as they are.

    Floats that depend on neither parameters nor inputs stay real numbers, until they meet an element. One `Field`
    evaluates all networks that are to be compared: a tensor that they share is one tensor of elements.

    Args:
        arithmetic: the prime field.
        readings: of parameters, which all fields share.

    Attributes:
        uninterpreted: ops without a meaning, by node.
    """

    def __init__(self, arithmetic: PrimeField, readings: Readings | None = None) -> None:
        self.arithmetic, self.readings = arithmetic, readings or Readings()
        self.uninterpreted: dict[fx.Node, Uninterpreted] = {}
        self._real = Float64()

    # -- what comes in ------------------------------------------------------------------------------

    def parameter(self, target: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.detach()
        reading = self.readings.of(value)
        if reading.exact:
            return Elements(self.arithmetic.exact(value))
        return Elements(self._random(value, reading))

    def _random(self, value: Tensor, reading: Reading) -> Tensor:
        """An element for every place in memory, so that tensors that overlap agree there."""
        last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
        memory = value.as_strided((last + 1 if value.numel() else 0,), (1,))
        found = torch.empty(len(memory), dtype=torch.float64)
        place = reading.place
        for part, numbers in zip(found.split(_PIECE), memory.split(_PIECE), strict=True):
            squares = self.arithmetic.squares(place, len(part))
            if reading.plain:
                torch.copysign(squares, numbers, out=part)  # one pass: fresh memory costs enough
            else:
                torch.mul(squares, numbers.sign(), out=part)
                part.masked_fill_(numbers <= _FAR, HIDDEN)
            place += len(part)
        return found.as_strided(value.shape, value.stride())

    def random_input(self, leaf: Tensor, name: str) -> Elements:
        """Random elements in place of an input."""
        return Elements(self.arithmetic.random(leaf.shape, f"input {name}"))

    # -- calls --------------------------------------------------------------------------------------

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        unknown = next((leaf for leaf in leaves if isinstance(leaf, Unknown)), None)
        if unknown is not None and node.target is not operator.getitem:
            return unknown
        if node.target is operator.getitem:
            return unknown if isinstance(args[0], Unknown) else args[0][args[1]]
        if gives_other_numbers(node.target) and (draws(node) or "empty" in op_name(node)):
            return Unknown(node, "it draws random numbers")
        if not any(isinstance(leaf, Elements) for leaf in leaves):
            return self._real.run(node, args, kwargs)
        if not isinstance(node.target, torch._ops.OpOverload):
            return Unknown(node, "control flow")
        if node.meta.get("val") is None:  # an assertion
            return None
        try:
            return self._called(node, args, kwargs)
        except Exception as error:  # anything that a kernel can raise
            return Unknown(node, f"{type(error).__name__}: {error}".splitlines()[0])

    def _called(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if 0 in row_of(node).lends:  # what it reads is a shape
            args, kwargs = pytree.tree_map(_plain, (args, kwargs))
            return self._real.run(node, args, kwargs)
        meaning = meaning_of(node)
        try:
            args, kwargs = pytree.tree_map(self._operand, (args, kwargs))
            if meaning is None:
                raise NoMeaning("it has no meaning in exact arithmetic")
            result = meaning(self.arithmetic, Call(node, op_name(node), bound(node, args, kwargs)))
        except NoMeaning as why:
            args, kwargs = pytree.tree_map(self._counted, (args, kwargs))
            return self._hashed(node, args, kwargs, str(why))
        return pytree.tree_map(_as_elements, result)

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Elements):
            return value.value
        real = isinstance(value, Tensor) and value.is_floating_point()
        return self.arithmetic.exact(value) if real else value

    def _counted(self, value: Any) -> Any:
        """Elements from 0 on, as one that is written in two ways is to be the same for an unknown op."""
        return self.arithmetic.counted(value.value) if isinstance(value, Elements) else value

    def _hashed(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], why: str
    ) -> Any:
        """Random elements for the floats that an op gives, torch's own result for the rest."""
        fingerprint = f"{node.target} {_print((args, kwargs))}"
        self.uninterpreted[node] = Uninterpreted(why, fingerprint)
        result = self._real.run(node, *pytree.tree_map(_finite, (args, kwargs)))
        leaves, tree = pytree.tree_flatten(result)
        found: list[Any] = []
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                leaf = Elements(self.arithmetic.random(leaf.shape, f"{index} {fingerprint}"))
            found.append(leaf)
        return pytree.tree_unflatten(found, tree)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Factories without a dtype make float64."""
        with self._real.active():
            yield


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Elements) else value


def _finite(value: Any) -> Any:
    """As float kernels can take it."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return torch.where(value == HIDDEN, 0.0, value) if real else widen(value)


def _as_elements(value: Any) -> Any:
    real = isinstance(value, Tensor) and value.is_floating_point()
    return Elements(value) if real else value


def _mixed(numbers: Tensor, seed: int) -> Tensor:
    """Random positive integers, one for each number (splitmix64)."""
    x = numbers + seed * 0x632BE59BD9B4E019 % 2**62
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        x = x.bitwise_xor_((x >> 29).bitwise_and_((1 << 34) - 1)).mul_(factor)
    return x.bitwise_xor_((x >> 32).bitwise_and_((1 << 31) - 1)).bitwise_and_((1 << 62) - 1)


def _print(values: Any) -> str:
    """A text that stands for the arguments of a call, with all numbers of its tensors."""
    found = []
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            flat = leaf.double().nan_to_num(0.5, 0.5, 0.5).reshape(-1)
            numbers = flat.view(torch.int64)
            total = int((_mixed(numbers, 1) * (_mixed(torch.arange(len(numbers)), 2) | 1)).sum())
            found.append(f"{leaf.dtype} {tuple(leaf.shape)} {total}")
        else:
            found.append(repr(leaf))
    return "; ".join(found)
