"""Python numbers read exactly: floats stand for rationals, or for square roots of these, up to their last bits.

Passes and networks write 1e-5, 1/3, 1/sqrt(64) as floats. In a field in which equality is exact they must be what
is meant: three thirds are one, and the square of 1/sqrt(12) is a twelfth.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

_DIGITS = 9  # decimal ones that a number written by hand has at most
_BITS = 24  # of a number that a float32 holds
_LAST_BITS = 2.0**-51  # the error of a number that a few operations made
_LOW, _HIGH = 2**30, 2**44  # heights: numerator times denominator


class Surd(NamedTuple):
    """A number with a square root: of r = ``radicand``, with this sign.

    Attributes:
        form: ``root`` is sqrt(r), ``fourth`` its own root, ``rest`` 1 - sqrt(r), ``share`` 1 / (1 + sqrt(r)).
    """

    form: Literal["root", "fourth", "rest", "share"]
    sign: int
    radicand: Fraction


@lru_cache(maxsize=65536)
def recognised(x: float) -> Fraction | Surd | None:
    """What a finite float stands for; None for one that stands for nothing simple."""
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
    return _rational(x, _LAST_BITS, _HIGH)


def _rational(x: float, error: float, height: int) -> Fraction | None:
    """The simplest rational within a relative error, up to a height."""
    exact = Fraction(x)
    largest = 16
    while largest <= height:
        found = exact.limit_denominator(largest)
        if found and abs(found - exact) <= abs(exact) * Fraction(error):
            return found if abs(found.numerator) * found.denominator <= height else None
        largest *= 4
    return None


def _surd(x: float) -> Surd | None:
    sign = -1 if x < 0 else 1
    if (r := _rational(x * x, 4 * _LAST_BITS, 2**36)) is not None:
        return Surd("root", sign, r)
    if (r := _rational((1 - x) ** 2, 2**-44, 2**24)) is not None and x < 1:
        return Surd("rest", 1, r)
    if (r := _rational((1 / x - 1) ** 2, 2**-44, 2**24)) is not None and 0 < x < 1:
        return Surd("share", 1, r)
    if (r := _rational(x**4, 8 * _LAST_BITS, 2**24)) is not None:
        return Surd("fourth", sign, r)
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
