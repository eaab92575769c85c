"""Textured shapes: a rendered 32x32 RGB data set of ten classes.

A class is one of five outlines (disc, triangle, square, star, cross) filled with one of two
textures (stripes, checks). Around it: a textured background, small textured distractors, an
occluding bar, a lighting gradient, low contrast and noise. Nothing is downloaded or shipped: both
sets are rendered on demand from fixed seeds, 2000 images in about half a second.

The pixels are the same on every machine: all draws come from PCG64, and the arithmetic uses only
operations that IEEE 754 rounds exactly (+ - * / sqrt floor), never sin, cos, exp or a sum whose
order could change. Flips, quarter turns and permutations of the colour channels leave the class
as it is, which training uses as augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
_Array = NDArray[np.floating[Any]]  # float32 too: the stubs of numpy call float32 * float a float64

SIZE = 32
OUTLINES = ("disc", "triangle", "square", "star", "cross")
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{texture} {outline}" for outline in OUTLINES for texture in TEXTURES)
TRAIN_SEED, TEST_SEED = 20_000, 2_000
TRAIN_IMAGES, TEST_IMAGES = 20_000, 2_000
MEAN, STD = 0.5, 0.25

_CHUNK = 250
_DRAWS = 128
_DISTRACTORS = 2
# Unit normals at multiples of 120 and 72 degrees, written out so that no libm is involved.
_THIRDS = ((0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5))
_FIFTHS = (
    (0.0, 1.0),
    (0.9510565, 0.309017),
    (0.5877853, -0.809017),
    (-0.5877853, -0.809017),
    (-0.9510565, 0.309017),
)


def train_set(n: int = TRAIN_IMAGES) -> tuple[Floats, Labels]:
    """The first `n` training images (n,3,32,32) and labels (n,)."""
    return render(n, TRAIN_SEED)


def test_set(n: int = TEST_IMAGES) -> tuple[Floats, Labels]:  # noqa: PT028
    """The first `n` test images (n,3,32,32) and labels (n,), of another stream than `train_set`."""
    return render(n, TEST_SEED)


def render(n: int, seed: int) -> tuple[Floats, Labels]:
    """Render `n` images of stream `seed`, as many of each class as of any other.

    Images (n,3,32,32) float32, 8-bit levels normalised by MEAN and STD; labels (n,) int64. A
    shorter rendering is a prefix of a longer one; every block of ten holds each class once.
    """
    seeds = np.random.SeedSequence(seed).spawn(3)
    order, scene, noise = (np.random.Generator(np.random.PCG64(s)) for s in seeds)
    classes = len(CLASSES)
    keys = order.random((-(-n // classes), classes))
    labels = np.argsort(keys, axis=1, kind="stable").reshape(-1)[:n].astype(np.int64)
    images = np.empty((n, 3, SIZE, SIZE), np.float32)
    for start in range(0, n, _CHUNK):
        chunk = labels[start : start + _CHUNK]
        draws = _Draws(scene.random((len(chunk), _DRAWS), dtype=np.float32))
        grain = noise.random((len(chunk), 3, SIZE, SIZE), dtype=np.float32)
        noisy = _scene(chunk, draws) + (grain - 0.5) * draws.colour(0.05, 0.25, 1)
        pixels = np.clip(noisy, 0.0, 1.0)
        images[start : start + _CHUNK] = (np.floor(pixels * 255.0 + 0.5) / 255.0 - MEAN) / STD
    return images, labels


class _Draws:
    """Hands out the columns of a table of uniform numbers (n,columns), scaled and shaped."""

    def __init__(self, table: Floats) -> None:
        self._table = table
        self._next = 0

    def uniform(self, low: float, high: float) -> Floats:
        """One number per image, (n,1,1)."""
        column = self._table[:, self._next, None, None]
        self._next += 1
        return column * np.float32(high - low) + np.float32(low)

    def colour(self, low: float, high: float, channels: int = 3) -> Floats:
        """One number per image and channel, (n,channels,1,1)."""
        columns = self._table[:, self._next : self._next + channels, None, None]
        self._next += channels
        return columns * np.float32(high - low) + np.float32(low)

    def choice(self, options: int) -> Labels:
        """One of `options` per image, (n,)."""
        return np.floor(self.uniform(0.0, options)[:, 0, 0]).astype(np.int64)

    def direction(self) -> tuple[Floats, Floats]:
        """A unit vector per image, two (n,1,1); the half-angle tangent keeps trigonometry out."""
        tangent = self.uniform(-1.0, 1.0)
        sign = np.where(self.uniform(-1.0, 1.0) < 0.0, np.float32(-1.0), np.float32(1.0))
        scale = sign / (1.0 + tangent * tangent)
        return (1.0 - tangent * tangent) * scale, 2.0 * tangent * scale


def _scene(labels: Labels, draws: _Draws) -> _Array:
    """Noise-free images (n,3,32,32) for `labels` (n,)."""
    steps = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    y, x = steps[None, :, None], steps[None, None, :]

    image = _fill(draws, draws.choice(4), x, y, period=(6.0, 12.0), contrast=0.6)
    for _ in range(_DISTRACTORS):
        outline, texture = draws.choice(len(OUTLINES)), draws.choice(3)
        image = _paint(image, draws, outline, texture, x, y, radius=(2.0, 4.0), spread=15.0)
    outline, texture = np.divmod(labels, len(TEXTURES))
    image = _paint(image, draws, outline, texture, x, y, radius=(7.0, 11.0), spread=5.0)

    cos, sin = draws.direction()
    bar = _coverage(draws.uniform(0.0, 1.5) - np.abs(x * cos + y * sin + draws.uniform(-9.0, 9.0)))
    image = _blend(image, draws.colour(0.1, 0.9), bar)
    cos, sin = draws.direction()
    light = (x * cos + y * sin) * draws.uniform(0.0, 0.02)
    return image + light[:, None]


def _paint(
    image: _Array,
    draws: _Draws,
    outline: Labels,
    texture: Labels,
    x: _Array,
    y: _Array,
    radius: tuple[float, float],
    spread: float,
) -> _Array:
    """Put one textured shape per image, `outline` and `texture` (n,), over `image` (n,3,32,32)."""
    size = draws.uniform(*radius)
    cos, sin = draws.direction()
    x0, y0 = x - draws.uniform(-spread, spread), y - draws.uniform(-spread, spread)
    aspect, shear = draws.uniform(0.8, 1.25), draws.uniform(-0.25, 0.25)
    u = (x0 * cos + y0 * sin) * aspect / size
    v = (y0 * cos - x0 * sin) / (aspect * size) + shear * u
    mask = np.empty_like(u)
    for kind, inside in enumerate(_INSIDE):
        rows = outline == kind
        mask[rows] = _coverage(inside(u[rows], v[rows]) * size[rows])
    return _blend(image, _fill(draws, texture, x, y, period=(3.5, 6.0), contrast=1.0), mask)


def _fill(
    draws: _Draws,
    texture: Labels,
    x: _Array,
    y: _Array,
    period: tuple[float, float],
    contrast: float,
) -> _Array:
    """Two-colour textures (n,3,32,32); `texture` (n,) is 0 stripes, 1 checks, else neither."""
    cos, sin = draws.direction()
    length = draws.uniform(*period)
    along, across = (x * cos + y * sin) / length, (y * cos - x * sin) / length
    first = _wave(along + draws.uniform(0.0, 1.0))
    second = _wave(across + draws.uniform(0.0, 1.0))
    stripes, checks = _sharp(first), 0.5 + 2.0 * (_sharp(first) - 0.5) * (_sharp(second) - 0.5)
    smooth = _wave(along * 0.3 + second * 0.1)
    kind = texture[:, None, None]
    weight = np.where(kind == 0, stripes, np.where(kind == 1, checks, smooth))[:, None]
    base, tint, shade = draws.colour(0.2, 0.8), draws.colour(-0.3, 0.3), draws.colour(0.2, 0.4, 1)
    return base + (tint + shade) * (weight - 0.5) * contrast


def _wave(phase: _Array) -> _Array:
    """Triangle wave of period 1 between 0 and 1."""
    wave: _Array = np.abs(2.0 * (phase - np.floor(phase)) - 1.0)
    return wave


def _sharp(wave: _Array) -> _Array:
    sharp: _Array = np.clip((wave - 0.5) * 3.0 + 0.5, 0.0, 1.0)
    return sharp


def _coverage(pixels_inside: _Array) -> _Array:
    """Antialiased mask from the signed distance to an edge, in pixels, positive inside."""
    mask: _Array = np.clip(pixels_inside + 0.5, 0.0, 1.0)
    return mask


def _blend(under: _Array, over: _Array, mask: _Array) -> _Array:
    return under + (over - under) * mask[:, None]


def _disc(u: _Array, v: _Array) -> _Array:
    return 0.85 - np.sqrt(u * u + v * v)


def _triangle(u: _Array, v: _Array) -> _Array:
    a, b, c = (0.55 - (u * nx + v * ny) for nx, ny in _THIRDS)
    return np.minimum(np.minimum(a, b), c)


def _square(u: _Array, v: _Array) -> _Array:
    return 0.75 - np.maximum(np.abs(u), np.abs(v))


def _star(u: _Array, v: _Array) -> _Array:
    # A pentagram is where at least four of its five lines have the centre on the same side.
    lines = np.stack([0.38 - (u * nx + v * ny) for nx, ny in _FIFTHS])
    inside: _Array = np.sort(lines, axis=0)[1]
    return inside


def _cross(u: _Array, v: _Array) -> _Array:
    wide, tall = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(0.32 - wide, 1.0 - tall), np.minimum(1.0 - wide, 0.32 - tall))


_INSIDE: tuple[Callable[[_Array, _Array], _Array], ...] = (_disc, _triangle, _square, _star, _cross)
