"""A small pre-LN classifier of tokens, samples for it, and what `distill` needs of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfold.graph import Graph, capture
from normfold.rewrite import parse, run_pipeline
from normfold.train.data import Data, load_data
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


def pair(kind: str, norms: str = "") -> tuple[Graph, Graph]:
    """Teacher, canonical, and a student whose norms are replaced."""
    teacher, _ = run_pipeline(
        capture(classifier(), (torch.zeros(2, *TOKENS[1:]),)), parse("canonicalize")
    )
    x, _ = samples()
    teacher.samples = [((x,), {})]
    student = own_tensors(teacher)
    options = f"to={kind}" + (f" norms={norms}" if norms else "")
    (item,) = parse(f"replace-layernorm{{{options}}}")
    item.run(student)
    return teacher, student
