"""Transforms of a space's coordinates that nobody sees, or everybody can absorb: a set, closed under what follows.

Orthogonal maps are permutations and changes of sign among others: a set that holds the one holds the other. So the
transforms that two ends of a space leave are the intersection of their sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Transform(Enum):
    """A family of transforms; the words are for people."""

    INVERTIBLE = "any invertible matrix"
    ORTHOGONAL = "orthogonal maps"
    ORTHOGONAL_FIXING_ONE = "orthogonal maps that fix 1"
    PERMUTATION = "permutations"
    DIAGONAL = "diagonal"
    POSITIVE_DIAGONAL = "positive diagonal"
    SIGNS = "changes of sign"
    SCALE = "positive scale"
    SHIFT = "shifts"
    SHIFT_OF_ALL = "adding c * 1"


_CONTAINS = {
    Transform.INVERTIBLE: {Transform.ORTHOGONAL, Transform.DIAGONAL},
    Transform.ORTHOGONAL: {Transform.ORTHOGONAL_FIXING_ONE, Transform.SIGNS},
    Transform.ORTHOGONAL_FIXING_ONE: {Transform.PERMUTATION},
    Transform.DIAGONAL: {Transform.POSITIVE_DIAGONAL, Transform.SIGNS},
    Transform.POSITIVE_DIAGONAL: {Transform.SCALE},
    Transform.SHIFT: {Transform.SHIFT_OF_ALL},
}

Symmetry = frozenset[Transform]


def symmetry(*families: Transform) -> Symmetry:
    """The families and all that they contain."""
    found: set[Transform] = set()
    stack = [*families]
    while stack:
        family = stack.pop()
        found.add(family)
        stack += _CONTAINS.get(family, ())
    return frozenset(found)


NONE = symmetry()
LINEAR = symmetry(Transform.INVERTIBLE, Transform.SHIFT)  # its weight and bias take anything
PER_CHANNEL = symmetry(Transform.PERMUTATION, Transform.DIAGONAL, Transform.SHIFT)
PER_FACTOR = symmetry(Transform.PERMUTATION, Transform.DIAGONAL)  # a number per channel
HOMOGENEOUS = symmetry(Transform.PERMUTATION, Transform.POSITIVE_DIAGONAL)
POINTWISE = symmetry(Transform.PERMUTATION)
LAYER_NORM = symmetry(Transform.ORTHOGONAL_FIXING_ONE, Transform.SCALE, Transform.SHIFT_OF_ALL)
RMS_NORM = symmetry(Transform.ORTHOGONAL, Transform.SCALE)
# a gain stands between the norm and its readers, and follows a permutation only
LAYER_NORM_WITH_GAIN = symmetry(Transform.PERMUTATION, Transform.SCALE, Transform.SHIFT_OF_ALL)
RMS_NORM_WITH_GAIN = symmetry(Transform.PERMUTATION, Transform.SIGNS, Transform.SCALE)


def common(sets: Iterable[Symmetry]) -> Symmetry:
    """What all ends of a space leave."""
    found = LINEAR
    for item in sets:
        found = found & item
    return found


def words(found: Symmetry) -> str:
    """The largest families of a set, in words."""
    largest = [
        family
        for family in Transform
        if family in found
        and not any(family in symmetry(other) - {other} for other in found if other is not family)
    ]
    return ", ".join(family.value for family in largest) or "identity only"
