"""What stands in front of each pass when it is tried alone, and networks that are there already."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from normfold.ir import Graph, capture
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb

Build = Callable[[], nn.Module]
Shape = tuple[int, ...]

BEFORE = {
    "canonicalize": "",
    "fold-input": "canonicalize",
    "fold-affine": "canonicalize",
    "elide-bias": "canonicalize",
    "freeze-statistics": "canonicalize",
    "fold-near-affine": "canonicalize",
    "fold-mean": "canonicalize",
    "merge-linear": "canonicalize,fold-affine",
    "prune-dead-channels": "canonicalize,fold-affine",
    "prune-small-channels": "canonicalize,fold-affine",
    "center-stream": "canonicalize,fold-affine",
    "compress-stream": "canonicalize,fold-affine,center-stream",
    "rotate-stream": "canonicalize,fold-affine,center-stream",
    "equalize": "canonicalize,fold-affine",
    "migrate-scale": "canonicalize",
    "replace-layernorm": "canonicalize",
    "restore": "canonicalize,fold-affine{direction=forward}",
    "bake": "canonicalize,fold-affine,restore",
    "measure-ranges": "canonicalize,fold-affine,restore,bake",
    "keep-grids": "canonicalize,fold-affine,restore,bake",
    "quantize-tables": "canonicalize,fold-affine,restore,bake",
    "quantize-weights": "canonicalize,fold-affine,restore,bake",
    "quantize-activations": "canonicalize,fold-affine,restore,bake,quantize-weights",
    "quantize-dynamic": "canonicalize,fold-affine,restore,bake",
    "correct-bias": "canonicalize,fold-affine,restore,bake,quantize-weights",
}


@functools.cache
def captured(
    build: Build, shape: Shape, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Graph]:
    """A network and its graph: made once, as nothing may change them."""
    torch.manual_seed(0)
    module = perturb(build()).to(dtype)
    return module, capture(module, (torch.randn(shape, dtype=dtype),))


@functools.cache
def _prepared(text: str, build: Build, shape: Shape, dtype: torch.dtype) -> Graph:
    graph = captured(build, shape, dtype)[1].copy()
    graph.samples = [(graph.args, {})]
    return run_pipeline(graph, parse(text))[0] if text else graph


def prepared_for(
    name: str, build: Build, shape: Shape, dtype: torch.dtype = torch.float32
) -> Graph:
    """A graph of the caller's own, with what stands in front of this pass behind it."""
    return _prepared(BEFORE[name], build, shape, dtype).copy()
