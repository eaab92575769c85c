"""Arithmetic modulo a prime p = 3 mod 4, p < 2^20, on float64 tensors.

A product of two elements is below 2^40, so that float64 matrix products and convolutions are exact up to 8192
terms. The sign is the quadratic character: chi(x y) = chi(x) chi(y) and chi(-1) = -1, so that a ReLU that keeps
elements of character 1 is homogeneous for positive scales, as the real one is. The square root of a square is the
one that is itself a square; that of any other element v is c sqrt(-v) with a fixed square c: then
sqrt(a^2 v) = |a| sqrt(v). Of the small primes as many as possible are squares: they are positive, and so are the
numbers that networks are written with.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from normfold.domains.numbers import Form, factors, recognised
from normfold.ops.arithmetic import HIDDEN, NoMeaning

_LARGEST, _SMALLEST = 2**20, 2**19
_SMALL = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
_FAR = 1e30  # a number below minus this stands for minus infinity
_CACHED = 1 << 15  # numbers that are worked on at once: torch does not divide so few among threads
_MANY = 4096  # different real numbers that are read one by one


def suitable_primes(
    count: int, radicands: Iterable[Fraction] = (), positive: Iterable[Fraction] = ()
) -> tuple[int, ...]:
    """The largest primes for this arithmetic in which ``radicands`` have roots, other numbers are ``positive``,
    and as many small primes as possible, as far as there are such primes."""
    wanted = (sorted(set[int]().union(*map(factors, each))) for each in (radicands, positive))
    return _primes(count, tuple(dict.fromkeys((*chain(*wanted), *_SMALL))))


@lru_cache(maxsize=64)
def _primes(count: int, squares: tuple[int, ...]) -> tuple[int, ...]:
    found = _candidates()
    for number in squares:
        fit = tuple(p for p in found if pow(number, (p - 1) // 2, p) == 1)
        found = fit if len(fit) >= count else found
    return found[:count]


@lru_cache(maxsize=1)
def _candidates() -> tuple[int, ...]:
    sieve = torch.ones(_LARGEST, dtype=torch.bool)
    for n in range(2, 1024):
        if sieve[n]:
            sieve[n * n :: n] = False
    found: list[int] = sieve.nonzero().flatten().tolist()
    return tuple(p for p in reversed(found) if p % 4 == 3 and p > _SMALLEST)


@dataclass(frozen=True)
class Tables:
    """Functions of every element of a field: signs are int8, elements float32, which holds them exactly."""

    sign: Tensor
    inverse: Tensor
    root: Tensor


@lru_cache(maxsize=6)
def tables(p: int) -> Tables:
    """Tables from logarithms to a primitive root: the sign is the parity, the inverse the negative."""
    order = p - 1
    divisors = [q for n in range(1, 1024) if order % n == 0 for q in (n, order // n)]
    primitive = next(
        g for g in range(2, p) if all(pow(g, q, p) != 1 for q in divisors if q != order)
    )
    powers = torch.ones(1, dtype=torch.int64)
    while len(powers) < order:
        powers = torch.cat([powers, powers * pow(primitive, len(powers), p) % p])
    powers = powers[:order]
    place = torch.arange(order)
    sign = torch.zeros(p, dtype=torch.int8)
    sign[powers] = (1 - 2 * (place % 2)).to(torch.int8)
    inverse, root = (torch.zeros(p, dtype=torch.float32) for _ in range(2))
    inverse[powers] = powers[-place % order].float()
    half = order // 2  # of -1, and odd
    square = torch.where(place % 2 == 0, place, (place + half) % order)
    exponent = square // 2
    exponent = torch.where(exponent % 2 == 0, exponent, exponent + half)
    beyond = torch.where(place % 2 == 0, 0, 2 * (order // 7))  # sqrt(-v) = c sqrt(v)
    root[powers] = powers[(exponent + beyond) % order].float()
    return Tables(sign, inverse, root)


def _generator(what: str, seed: int, prime: int) -> torch.Generator:
    number = zlib.crc32(f"{what} {seed} {prime}".encode())  # torch uses 32 bits of it
    return torch.Generator().manual_seed(number)


@lru_cache(maxsize=3)  # the primes of one certificate; every verdict begins with the same ones
def _squares(p: int, seed: int) -> Tensor:
    found = torch.randint(1, p, (p,), generator=_generator("squares", seed, p))
    return found.mul_(found).remainder_(p).float().repeat(2)


class PrimeField:
    """The integers modulo a prime.

    Args:
        prime: see `suitable_primes`.
        seed: of everything that is random.
        radicands: of the numbers that the networks are written with (see `recognised`).

    Attributes:
        singular: a division by zero, or a root of it, happened: what is compared then says less.
        opaque: numbers that stand for nothing simple; each is some element of its sign.
    """

    longest = 8192
    short = 1024

    def __init__(self, prime: int, seed: int = 0, radicands: Iterable[Fraction] = ()) -> None:
        self.prime, self.seed, self._radicands = prime, seed, tuple(radicands)
        self._step = 1.0 / prime
        self._half_a_step = torch.tensor(0.5 / prime, dtype=torch.float64)
        self.singular = False
        self.opaque: set[float] = set()
        self._tables = tables(prime)
        self._scrambled: dict[tuple[str, bool], Tensor] = {}
        self._numbers: dict[Any, int | None] = {}

    # -- elements of numbers ------------------------------------------------------------------------

    def element(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return x if x.is_floating_point() else (x.long() % self.prime).double()
        if isinstance(x, float) and not -_FAR < x < _FAR:
            if x > 0 or x != x:
                raise NoMeaning(f"there is no number {x}")
            return torch.tensor(HIDDEN, dtype=torch.float64)
        return torch.tensor(float(self._number(x)), dtype=torch.float64)

    def _number(self, x: Any) -> int:
        if isinstance(x, int):
            return x % self.prime
        if x not in self._numbers:
            self._numbers[x] = self._read(x)
        value = self._numbers[x]
        if value is None:
            self.opaque.add(float(x))
            random = int(torch.randint(1, self.prime, (), generator=self.generator(f"{x:.11e}")))
            value = random * random * (1 if x > 0 else -1) % self.prime
        return value

    def _read(self, x: float | Fraction) -> int | None:
        found = x if isinstance(x, Fraction) else recognised(float(x), self._radicands)
        if isinstance(found, Fraction):
            return self._ratio(found)
        if found is not None:
            r = self._read(found.radicand)
            if r is not None and int(self._tables.sign[r]) == 1:
                unit = self._unit(found.form, int(self._tables.root[r]))
                return self._ratio(found.factor) * unit % self.prime
        return None

    def _ratio(self, x: Fraction) -> int:
        return x.numerator * self._over(x.denominator) % self.prime

    def _unit(self, form: Form, root: int) -> int:
        match form:
            case "root":
                return root
            case "fourth":
                return int(self._tables.root[root])
            case "rest":
                return 1 - root
            case "share":
                return self._over(1 + root)

    def _over(self, bottom: int) -> int:
        if bottom % self.prime == 0:
            raise NoMeaning(f"there is no 1/{bottom} modulo {self.prime}")
        return pow(bottom, -1, self.prime)

    def exact(self, x: Tensor) -> Tensor:
        x = x.double()
        hidden = x <= -_FAR
        if not bool((hidden | (x.abs() < _FAR)).all()):
            raise NoMeaning("it holds numbers that are not finite")
        whole = torch.where(hidden, 0.0, x)
        if bool(((whole == whole.round()) & (whole.abs() < 2**53)).all()):
            found = (whole.long() % self.prime).double()
        else:
            values, places = whole.unique(return_inverse=True)
            if len(values) > _MANY:
                raise NoMeaning(f"{len(values)} different real numbers")
            elements = [float(self._number(value)) for value in values.tolist()]
            found = torch.tensor(elements, dtype=torch.float64)[places].reshape(x.shape)
        return torch.where(hidden, HIDDEN, found)

    def tally(self, count: int | Tensor) -> Tensor:
        return self.inverse(self.element(count))

    # -- arithmetic ---------------------------------------------------------------------------------

    def reduce(self, x: Tensor, terms: int = 1) -> Tensor:
        # floor((x + 1/2) / p) is right up to 2^50: the quotient is 1/2p away from every whole number, more than
        # float64 errs by. Above, it may be off by one, and what is left is reduced again. In place and piece by
        # piece, as fresh memory costs more than the arithmetic.
        for part in x.view(-1).split(_CACHED) if x.is_contiguous() else (x,):
            for _ in range(1 if terms <= self.short else 2):
                quotient = torch.add(self._half_a_step, part, alpha=self._step).floor_()
                part.add_(quotient, alpha=-self.prime)
        return x

    def _visible(self, x: Tensor, *operands: Tensor) -> Tensor:
        """Reduced; what is hidden in an operand is hidden in the result."""
        finite, found = _is_finite(x), self.reduce(x)
        if not finite:
            for operand in operands:
                found = torch.where(operand == HIDDEN, HIDDEN, found)
        return found

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self._visible(x + y, x, y)

    def sub(self, x: Tensor, y: Tensor) -> Tensor:
        found = x - y
        if not _is_finite(found) and bool((y == HIDDEN).any()):
            raise NoMeaning("minus infinity is taken off")
        return self._visible(found, x)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        product = x * y
        finite, found = _is_finite(product), self._visible(product, x, y)
        if not finite:  # a mask times minus infinity hides where it is not 0
            found = torch.where((x == 0) | (y == 0), 0.0, found)
        return found

    def inverse(self, x: Tensor) -> Tensor:
        self.singular = self.singular or bool((x == 0).any())
        return self._looked_up(self._tables.inverse, x).double()

    def root(self, x: Tensor) -> Tensor:
        return self._looked_up(self._tables.root, x).double()

    def sign(self, x: Tensor) -> Tensor:
        return self._looked_up(self._tables.sign, x)

    def counted(self, x: Tensor) -> Tensor:
        """Elements as integers from 0 on."""
        return torch.where(x < 0, x + self.prime, x)

    def _looked_up(self, table: Tensor, x: Tensor) -> Tensor:
        least = float(x.min()) if x.numel() else 0.0
        if least == HIDDEN:
            raise NoMeaning("it reads what a mask hides")
        if least < 0:
            x = self.counted(x)
        return table.index_select(0, x.reshape(-1).int()).reshape(x.shape)

    # -- unknown functions --------------------------------------------------------------------------

    def generator(self, what: str) -> torch.Generator:
        """Random numbers for a name, the same ones whenever it is asked for."""
        return _generator(what, self.seed, self.prime)

    def scramble(self, x: Tensor, what: str, positive: bool = False) -> Tensor:
        key = what, positive
        if key not in self._scrambled:
            table = self.random((self.prime,), what)
            self._scrambled[key] = (self.mul(table, table) if positive else table).float()
        return self._looked_up(self._scrambled[key], x).double()

    def random(self, shape: Iterable[int], what: str) -> Tensor:
        """Random elements for a name."""
        found = torch.randint(self.prime, tuple(shape), generator=self.generator(what))
        return found.double()

    def squares(self, place: int, count: int) -> Tensor:
        """Random squares, in float32, that stand in a memory from a place on: a long table again and again.

        At most p of them. What is far away in memory, such as another parameter, starts anywhere in it.
        """
        block = zlib.crc32(f"{place >> 40} {self.seed} {self.prime}".encode())
        table = _squares(self.prime, self.seed)
        return table.narrow(0, (block + place) % self.prime, count)


def are_simple(x: Tensor) -> bool:
    """True if each of these real numbers stands for something simple."""
    return all(recognised(value) is not None for value in x.flatten().tolist() if abs(value) < _FAR)


def _is_finite(x: Tensor) -> bool:
    """False if something is hidden; one pass, without a tensor of booleans."""
    return bool(x.sum().isfinite())
