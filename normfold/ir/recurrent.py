"""LSTM and GRU with a free length, and LSTM with projections.

torch.export finds the shapes of a recurrent layer by running it step by step, which fixes the number of steps.
The shapes do not need the steps: here a rule for them stands in while a network is traced.

The projected state h = P m of an LSTM (``proj_size``), which formats have not, enters only linear maps. So one
without projections has the state m: its weights are W_hh P, and W_ih P where the layer below is projected too; h
is made of m at the end, and of an initial h the least m that gives it. (P has fewer rows than columns.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from normfold.ir.shared import refused_write, require_traceable

Table = dict[Any, Callable[..., Any]]
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


_PROJECTED = "projected_lstm"
_LIBRARY.define(f"{_PROJECTED}{str(_OPS['lstm']._schema)[len('aten::lstm.input') :]}")
torch.library.register_fake(f"normfold::{_PROJECTED}", _shapes, lib=_LIBRARY)


def _without_projections(
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    cells = [list(params[at : at + each]) for at in range(0, len(params), each)]
    made: list[Tensor] = []
    for place, (w_in, w_state, *biases, projection) in enumerate(cells):
        below = cells[(place // directions - 1) * directions :][:directions]
        if place >= directions:
            parts = w_in.chunk(directions, 1)
            w_in = torch.cat([w @ cell[-1] for w, cell in zip(parts, below, strict=True)], 1)
        made += [w_in, w_state @ projection, *biases]
    last = [cell[-1] for cell in cells]
    first = [h @ torch.linalg.pinv(p).t() for h, p in zip(states[0].unbind(), last, strict=True)]
    y, m, c = torch.ops.normfold.lstm(
        x,
        [torch.stack(first), states[1]],
        made,
        has_biases,
        num_layers,
        dropout,
        train,
        bidirectional,
        batch_first,
    )
    top = zip(y.chunk(directions, 2), last[-directions:], strict=True)
    return (
        torch.cat([part @ p.t() for part, p in top], 2),
        torch.stack([part @ p.t() for part, p in zip(m.unbind(), last, strict=True)]),
        c,
    )


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
    program: ExportedProgram, decompose: Callable[[Table], ExportedProgram]
) -> ExportedProgram:
    """What ``decompose`` makes of a program, by a table of more decompositions.

    Recurrent layers stay one op each, without projections.

    Raises:
        CaptureError: a write that torch does not trace.
    """
    ours = {op: getattr(torch.ops.normfold, name).default for name, op in _OPS.items()}
    projected = getattr(torch.ops.normfold, _PROJECTED).default
    for node in program.graph.nodes:
        if node.target in ours:
            node.target = projected if is_projected(node) else ours[node.target]
    program.graph_module.recompile()
    require_traceable(program)
    try:
        done = decompose({projected: _without_projections})
    except Exception as error:
        refused = refused_write(program)
        if refused is None:
            raise
        raise refused from error
    back = {other: op for op, other in ours.items()} | {projected: _OPS["lstm"]}
    for one in (program, done):
        _swap(one, back)
    return done


def is_projected(node: fx.Node) -> bool:
    """True if the weights are of an LSTM with projections: of two states, the first is the smaller one."""
    if node.target is not _OPS["lstm"]:
        return False
    states: Any = node.args[1]
    h, c = (state.meta["val"].shape[2] for state in states)
    return bool(h != c)


def _swap(program: ExportedProgram, targets: dict[Any, Any]) -> None:
    found = [node for node in program.graph.nodes if node.target in targets]
    for node in found:
        node.target = targets[node.target]
    if found:
        program.graph_module.recompile()
