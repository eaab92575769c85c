"""Transformers architectures from tiny configs, and what `algorithms.md` 4.5 says of each.

Widths, heads and lengths differ, so that no axis can be taken for another by its size. Networks end in a
head where they have one: an output that is the residual stream itself may not change by its mean.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.zoo.transformers_configs import ARCHITECTURES

# name                  norms  converted at least  centring ops at most
EXPECTED = """
    gpt2                    5  5  1
    opt                     5  5  1
    opt-350m                4  0  0
    gpt-neo                 5  5  1
    gpt-neox                5  5  0
    gpt-neox-sequential     5  5  0
    gptj                    3  3  0
    codegen                 3  3  0
    falcon-7b               3  3  1
    falcon-40b              5  5  1
    falcon-rw               5  5  1
    phi                     3  3  0
    bloom                   6  5  1
    bloom-untied            6  6  1
    mpt                     5  5  1
    starcoder               5  5  1
    starcoder2              5  5  1
    stablelm                5  5  0
    persimmon               9  9  0
    xglm                    5  5  1
    biogpt                  5  5  1
    nemotron                5  5  0
    cohere                  3  3  1
    cohere-qk-norm          7  7  1
    olmo                    5  5  0
    olmo2                   0  0  0
    llama                   0  0  0
    bert                    6  0  0
    roberta                 6  0  0
    distilbert              6  0  0
    electra                 6  0  0
    bart                   12  0  0
    modernbert              6  4  1
    esm                     6  5  1
    pegasus                12 12  2
    m2m100                 12 12  2
    t5                      0  0  0
    vit                     5  5  0
    deit                    5  5  0
    beit                    5  5  0
    dinov2                  5  5  0
    dinov2-registers        5  5  0
    clip-vision             6  6  1
    clip-text               5  5  0
    siglip-vision           6  5  0
    siglip-text             5  5  0
    ast                     6  5  0
    videomae                5  5  0
    swin                   11  6  0
    swinv2                 11 10  0
    convnext                7  1  0
    segformer               9  9  2
    whisper                12 12  2
    whisper-encoder         5  5  1
    wav2vec2                6  0  0
    wav2vec2-stable         9  8  1
    hubert-stable           9  8  1
"""


@dataclass(frozen=True)
class Expected:
    """LayerNorms of a tiny network, the least number to convert, the most centring ops to spend."""

    norms: int
    converted: int
    ops: int


def expectations() -> dict[str, Expected]:
    """What must become of each architecture, by name."""
    rows = (line.split() for line in EXPECTED.strip().splitlines())
    return {name: Expected(int(norms), int(least), int(ops)) for name, norms, least, ops in rows}


class Plain(nn.Module):
    """A transformers network called with tensors, returning one field of its output."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], field: str) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.field = field

    def forward(self, *tensors: Tensor) -> Tensor:
        result = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        value: Tensor = result[self.field]
        return value


def create(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The tiny network with random numbers in eval mode, and inputs of batch 2."""
    transformers = importlib.import_module("transformers")
    arch = ARCHITECTURES[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, arch.config)(**arch.settings)
        config.use_cache = False
        model = getattr(transformers, arch.model)(config).eval()
    inputs = arch.inputs()
    enliven(model)
    return Plain(model, tuple(inputs), arch.field).eval(), tuple(inputs.values())


def enliven(module: nn.Module) -> None:
    """Weights as large as their fan-in allows: with a deviation of 0.02 tiny networks pass nothing on."""
    with torch.no_grad():
        for part in module.modules():
            weight = part._parameters.get("weight")
            if weight is None or weight.dim() < 2 or "Norm" in type(part).__name__:
                continue
            fan_in = weight.shape[0] if type(part).__name__ == "Conv1D" else weight[0].numel()
            wanted = 0.5 if isinstance(part, nn.Embedding) else 1 / math.sqrt(fan_in)
            weight.mul_(wanted / weight.std().clamp_min(1e-6))
