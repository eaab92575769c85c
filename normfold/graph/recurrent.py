"""LSTM and GRU with a free length.

torch.export finds the shapes of a recurrent layer by running it step by step, which fixes the number of steps.
The shapes do not need the steps: here a rule for them stands in while a network is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

_LIBRARY = torch.library.Library("normfold", "FRAGMENT")
_OPS = {name: getattr(torch.ops.aten, name).input for name in ("lstm", "gru")}


def _shapes(
    x: Tensor,
    states: Sequence[Tensor] | Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Empty results: as many steps as the input has; the states keep their shape."""
    every = [states] if isinstance(states, Tensor) else list(states)
    width = every[0].shape[2] * (2 if bidirectional else 1)
    return x.new_empty((x.shape[0], x.shape[1], width)), *(s.new_empty(s.shape) for s in every)


for _name, _op in _OPS.items():  # what stands for them while torch.export decomposes what it traced
    _schema = str(_op._schema)
    _LIBRARY.define(f"{_name}{_schema[_schema.index('(') :]}")
    torch.library.register_fake(f"normfold::{_name}", _shapes, lib=_LIBRARY)


@contextmanager
def free_length() -> Iterator[None]:
    """While a network is traced, recurrent layers give shapes only."""
    saved = {op: dict(op.py_kernels) for op in _OPS.values()}
    try:
        for op, kernels in saved.items():
            for key in kernels:
                op.py_kernels[key] = _shapes
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def decomposed(
    program: ExportedProgram, decompose: Callable[[], ExportedProgram]
) -> ExportedProgram:
    """What ``decompose`` makes of a program; recurrent layers stay one op each."""
    ours = {op: getattr(torch.ops.normfold, name).default for name, op in _OPS.items()}
    _swap(program, ours)
    done = decompose()
    for one in (program, done):
        _swap(one, {other: op for op, other in ours.items()})
    return done


def _swap(program: ExportedProgram, targets: dict[Any, Any]) -> None:
    found = [node for node in program.graph.nodes if node.target in targets]
    for node in found:
        node.target = targets[node.target]
    if found:
        program.graph_module.recompile()
