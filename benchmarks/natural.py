"""Natural inputs that packages carry: crops of photographs, lines of text on them, small faces, and sounds.

The pictures lie in scikit-image and scikit-learn; nothing is downloaded. What calibrates never comes from the
photographs, the faces or the instruments that are tested on; which ones calibrate is drawn by the seed.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLOURED = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}
GREY = {
    name: f"skimage/data/{name}.png" for name in ("camera", "coins", "brick", "grass", "gravel")
}
PIP = "scikit-image scikit-learn"  # what carries them
TEXT = (
    "the quick brown fox jumps over a lazy dog while rain falls on Monday morning in November "
    "Invoice No 4711 total amount due Street Avenue Platform 9 closed until further notice EXIT"
)


class Missing(Exception):
    """A package is not installed; the text names the file that was looked for."""


def located(path: str) -> Path:
    """A file of an installed package, by its path from ``site-packages``; the package is not imported.

    Raises:
        Missing: it is not there.
    """
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, rest)).is_file():
            return file
    raise Missing(f"{path} is not installed")


@cache
def photograph(name: str) -> Any:
    """A photograph by its name, as an RGB picture of Pillow."""
    from PIL import Image

    path = (COLOURED | GREY)[name]
    return Image.open(located(path)).convert("RGB")


def split(seed: int) -> tuple[list[str], list[str]]:
    """Photographs that calibrate (three in colour, two in grey), and the seven that are tested on."""
    draw = random.Random(seed)
    coloured, grey = list(COLOURED), list(GREY)
    draw.shuffle(coloured)
    draw.shuffle(grey)
    return [*coloured[:3], *grey[:2]], [*coloured[3:], *grey[2:]]


def crop(picture: Any, width: int, height: int, draw: random.Random, least: float = 0.1) -> Any:
    """A random part of a picture, resized and perhaps mirrored, as networks are trained on."""
    area = picture.width * picture.height * math.exp(draw.uniform(math.log(least), 0))
    ratio = width / height * math.exp(draw.uniform(-0.29, 0.29))  # 3/4 to 4/3
    wide = min(picture.width, round(math.sqrt(area * ratio)))
    high = min(picture.height, round(math.sqrt(area / ratio)))
    left, top = draw.randint(0, picture.width - wide), draw.randint(0, picture.height - high)
    made = picture.resize((width, height), 3, (left, top, left + wide, top + high))  # 3: bicubic
    return made.transpose(0) if draw.random() < 0.5 else made  # 0: left to right


def pixels(pictures: Sequence[Any]) -> Tensor:
    """Pictures as a batch of planes between 0 and 1."""
    stacked = np.stack([np.asarray(picture, np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous() / 255


def halves(
    make: Callable[[Any, random.Random], Any], counts: tuple[int, int], seed: int
) -> tuple[Tensor, Tensor]:
    """Pictures made from photographs in turn: as many as asked for from either side of the split."""
    draw = random.Random(1000 + seed)
    both = []
    for names, count in zip(split(seed), counts, strict=True):
        both.append(pixels([make(photograph(names[i % len(names)]), draw) for i in range(count)]))
    return both[0], both[1]


def crops(side: int, counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Square crops of photographs: those that calibrate, and those that are tested on."""
    return halves(lambda picture, draw: crop(picture, side, side, draw), counts, seed)


def lines(width: int, height: int, counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Lines of printed text on photographs, half of them upside down."""
    from PIL import ImageDraw, ImageFont

    def line(picture: Any, draw: random.Random) -> Any:
        made = crop(picture, width, height, draw)
        mean = float(np.asarray(made).mean())
        ink = tuple(draw.randint(0, 60) + (150 if mean < 120 else 0) for _ in range(3))
        text = " ".join(draw.choices(TEXT.split(), k=draw.randint(1, 4)))
        font = ImageFont.load_default(draw.uniform(0.45, 0.85) * height)
        spot = (draw.uniform(0, 0.1) * width, height / 2)
        ImageDraw.Draw(made).text(spot, text, ink, font, anchor="lm")
        return made.transpose(3) if draw.random() < 0.5 else made  # 3: by 180 degrees

    return halves(line, counts, seed)


def faces(side: int, counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Grey pictures of 25 x 25 pixels, enlarged: faces and what is none, in turn. There are 200 in all."""
    small = np.load(located("skimage/data/lfw_subset.npy")).astype(np.float32)
    draw = random.Random(seed)
    kinds = [list(range(100)), list(range(100, 200))]  # faces first
    for kind in kinds:
        draw.shuffle(kind)
    order = [index for pair in zip(*kinds, strict=True) for index in pair]
    planes = torch.from_numpy(small[order])[:, None]
    size = (side, side)
    large = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
    large = large.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()
    return large[: counts[0]], large[counts[0] : sum(counts)]


RATE = 16000
# strength of the n-th harmonic, by instrument
INSTRUMENTS: dict[str, Callable[[int], float]] = {
    "saw": lambda n: 1 / n,
    "square": lambda n: n % 2 / n,
    "flute": lambda n: math.exp(-1.5 * (n - 1)),
    "reed": lambda n: (n % 2 + 0.2) * math.exp(-0.25 * n),
    "string": lambda n: abs(math.sin(0.9 * n)) / n,
    "voice a": lambda n: math.exp(-(((n - 5) / 3) ** 2)) + 0.3 / n,
    "voice o": lambda n: math.exp(-(((n - 2.5) / 1.5) ** 2)) + 0.1 / n,
    "organ": lambda n: 1.0 if n in (1, 2, 4, 8) else 0.0,
}


def frames(counts: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Frames of 1024 samples at 16 kHz, as CREPE takes them: tones of 50 to 1000 Hz, with some noise."""
    draw = random.Random(seed)
    names = list(INSTRUMENTS)
    draw.shuffle(names)
    time = np.arange(1024) / RATE

    def frame(name: str) -> Any:
        pitch = math.exp(draw.uniform(math.log(50), math.log(1000)))
        vibrato = 0.3 * math.sin(draw.uniform(0, 6)) * np.sin(2 * np.pi * 5.5 * time)
        phase = 2 * np.pi * pitch * time + vibrato
        wave = np.zeros(1024)
        for n in range(1, min(40, int(RATE / 2 / pitch)) + 1):
            wave += INSTRUMENTS[name](n) * np.sin(n * phase + draw.uniform(0, 2 * np.pi))
        noise = np.random.default_rng(draw.getrandbits(32)).standard_normal(1024)
        wave += 10 ** draw.uniform(-3, -0.5) * wave.std() * noise
        return (wave - wave.mean()) / wave.std()  # as torchcrepe does with every frame

    both = []
    for some, count in zip((names[:4], names[4:]), counts, strict=True):
        made = np.stack([frame(some[i % len(some)]) for i in range(count)])
        both.append(torch.from_numpy(made.astype(np.float32)))
    return both[0], both[1]
