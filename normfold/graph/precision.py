"""Run a graph, or evaluate a parameter expression, in float64 whatever dtype it was captured in.

Casting a module to double and capturing again breaks networks that build masks in the default dtype.
Interpreting the captured graph does not: every floating tensor and every floating dtype argument becomes
float64 as the node is run, so casts inside the network neither round nor fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

_WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def widen(value: Any) -> Any:
    """Floating tensors and dtypes to float64, complex ones to complex128, the rest as it is."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else _WIDER.get(value, value)
    if isinstance(value, torch.Tensor):
        return value.to(widen(value.dtype))
    return value


@contextmanager
def float64_default() -> Iterator[None]:
    """Factories without a dtype make float64 inside this block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Float64Interpreter(fx.Interpreter):
    """Runs a GraphModule in float64; parameters are upcast one at a time and freed after last use."""

    def fetch_attr(self, target: str) -> Any:
        return widen(super().fetch_attr(target))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(widen, (args, kwargs))
        if target is torch.ops.aten.view.default:  # float64 kernels may lay out results otherwise
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        with float64_default():
            return self.run(*pytree.tree_map(widen, args), enable_io_processing=False)
