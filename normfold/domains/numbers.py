"""Python numbers read exactly: floats stand for rationals, or for square roots of these, up to their last bits.

Passes and networks write 1e-5, 1/3, 1/sqrt(64) as floats. In a field in which equality is exact they must be what
is meant: three thirds are one, and the square of 1/sqrt(12) is a twelfth.

A random float64 is read as something by chance: there are about 0.3 h rationals of a height up to h in each
interval [x, e x], so that 0.6 h e of all numbers are within a relative error e of one. That is 1 in 200 for the
highest rationals, 1 in 10,000 for roots, and 1 in 200,000 for each radicand of which multiples are looked for.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

_DIGITS = 9  # decimal ones that a number written by hand has at most
_BITS = 24  # of a number that a float32 holds
_LAST_BITS = 2.0**-51  # the error of a number that a few operations made
_LOW, _HIGH = 2**30, 2**44  # heights: numerator times denominator


Form = Literal["root", "fourth", "rest", "share"]


class Surd(NamedTuple):
    """A number with a square root: of r = ``radicand``, times ``factor``.

    Attributes:
        form: ``root`` is sqrt(r), ``fourth`` its own root, ``rest`` 1 - sqrt(r), ``share`` 1 / (1 + sqrt(r)).
    """

    form: Form
    factor: Fraction
    radicand: Fraction


@lru_cache(maxsize=65536)
def recognised(x: float, radicands: tuple[Fraction, ...] = ()) -> Fraction | Surd | None:
    """What a finite float stands for; None for one that stands for nothing simple.

    Args:
        radicands: of other numbers that are written beside it. Rational multiples of what is made of their roots
            are recognised too, which are too many without them.
    """
    if x == int(x):
        return Fraction(int(x))
    if len(Decimal(repr(x)).normalize().as_tuple().digits) <= _DIGITS:
        return Fraction(repr(x))
    found = _rational(x, _LAST_BITS, _LOW) or _surd(x)
    if found is not None:
        return found
    whole = Fraction(x)  # a power of two below
    if abs(whole.numerator).bit_length() <= _BITS:
        return whole
    return _multiple(x, radicands) or _rational(x, _LAST_BITS, _HIGH)


def _rational(x: float, error: float, height: int) -> Fraction | None:
    """The simplest rational within a relative error, up to a height.

    One so near, that 2 height error < 1, is a convergent of the continued fraction (Legendre).
    """
    sign = -1 if x < 0 else 1
    top, bottom = exact, unit = abs(x).as_integer_ratio()
    near = exact * Fraction(error)
    before, found = (0, 1), (1, 0)
    while bottom:
        whole, rest = divmod(top, bottom)
        before, found = found, (whole * found[0] + before[0], whole * found[1] + before[1])
        n, d = found
        if n * d > height:
            return None
        if n and abs(n * unit - exact * d) <= near * d:
            return Fraction(sign * n, d)
        top, bottom = bottom, rest
    return None


def _surd(x: float) -> Surd | None:
    sign = Fraction(-1 if x < 0 else 1)
    if (r := _rational(x * x, 4 * _LAST_BITS, 2**36)) is not None:
        return Surd("root", sign, r)
    if (r := _rational((1 - x) ** 2, 2**-44, 2**24)) is not None and x < 1:
        return Surd("rest", Fraction(1), r)
    if (r := _rational((1 / x - 1) ** 2, 2**-44, 2**24)) is not None and 0 < x < 1:
        return Surd("share", Fraction(1), r)
    if (r := _rational(x**4, 8 * _LAST_BITS, 2**24)) is not None:
        return Surd("fourth", sign, r)
    return None


def _multiple(x: float, radicands: Collection[Fraction]) -> Surd | None:
    for r in radicands:
        root = math.sqrt(r)
        units = (root, math.sqrt(root), 1 - root, 1 / (1 + root))
        for form, unit in zip(get_args(Form), units, strict=True):
            factor = _rational(x / unit, 4 * _LAST_BITS, _LOW) if unit else None
            if factor is not None:
                return Surd(form, factor, r)
    return None


def factors(number: Fraction) -> set[int]:
    """The primes that divide a rational to an odd power: it is a square wherever these are."""
    found: set[int] = set()
    for part in (abs(number.numerator), number.denominator):
        rest, prime = part, 2
        while prime * prime <= rest:
            while rest % prime == 0:
                found ^= {prime}
                rest //= prime
            prime += 1
        if rest > 1:
            found ^= {rest}
    return found
