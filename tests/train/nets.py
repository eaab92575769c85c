"""A small pre-LN classifier of tokens, samples for it, and what `distill` needs of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from normfold.data.samples import Data, load_data
from normfold.ir import Graph, capture
from normfold.rewrite import parse, run_pipeline
from normfold.train.student import own_tensors
from tests.passes.centred import TOKENS, pre_norm


def classifier() -> nn.Module:
    """Two pre-LN branches and a norm in front of the head, mean over the tokens: 3 classes."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x)
        x = x + m.b(x)
        return m.head(m.norm(x).mean(1))

    torch.manual_seed(7)
    return pre_norm(wiring)


class Patches(nn.Module):
    """A pre-LN branch over the patches of an 8x8 image, mean over them: 2 classes. Says how images are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.norm1 = nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.norm2 = nn.LayerNorm(12)
        self.head = nn.Linear(12, 2)
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.25)}

    def forward(self, images: Tensor) -> Tensor:
        """(N,3,8,8) to (N,2)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = x + self.mlp(self.norm1(x))
        return self.head(self.norm2(x).mean(1))  # type: ignore[no-any-return]


def patches() -> nn.Module:
    """`Patches`, with norms that do something."""
    torch.manual_seed(11)
    module = Patches().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def balance(outputs: Tensor, labels: Tensor | None) -> float:
    """A user's metric: mean over the classes of the share that is right, in percent."""
    assert labels is not None
    right = outputs.argmax(-1) == labels
    shares = [right[labels == index].double().mean() for index in labels.unique()]
    return 100 * float(torch.stack(shares).mean())


def samples(rows: int = 200, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs, and as labels what the classifier says, one in ten wrong."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *TOKENS[1:], generator=random)
    with torch.no_grad():
        labels = classifier()(x).argmax(-1)
    labels[::10] = (labels[::10] + 1) % 3
    return x, labels


def data(rows: int = 200) -> Data:
    return load_data(samples(rows), ["x"])


@functools.cache
def _canonical() -> Graph:
    graph = capture(classifier(), (torch.zeros(2, *TOKENS[1:]),))
    return run_pipeline(graph, parse("canonicalize"))[0]


def pair(kind: str, norms: str = "") -> tuple[Graph, Graph]:
    """Teacher, canonical, and a student whose norms are replaced: both of the caller's own."""
    teacher = own_tensors(_canonical())
    teacher.original = classifier()  # the same numbers
    x, _ = samples()
    teacher.samples = [((x,), {})]
    student = own_tensors(teacher)
    options = f"to={kind}" + (f" norms={norms}" if norms else "")
    (item,) = parse(f"replace-layernorm{{{options}}}")
    item.run(student)
    return teacher, student
