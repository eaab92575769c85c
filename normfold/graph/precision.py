"""Run a graph in float64 whatever dtype it was captured in, or with every result rounded to its own.

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


_HALF = (torch.float16, torch.bfloat16)


class RoundedInterpreter(fx.Interpreter):
    """Runs a GraphModule whose half-precision ops compute in float32 and round their results.

    So does a GPU, whose products and sums accumulate in float32. The CPU's own half-precision kernels take up
    to a hundred times as long.
    """

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or "val" not in n.meta:
            return super().run_node(n)
        arguments: Any = self.fetch_args_kwargs_from_env(n)
        if not any(
            isinstance(x, torch.Tensor) and x.dtype in _HALF for x in pytree.tree_leaves(arguments)
        ):
            return super().run_node(n)
        args, kwargs = pytree.tree_map(_in_float32, arguments)
        results, tree = pytree.tree_flatten(n.target(*args, **kwargs))  # type: ignore[operator]
        kinds = pytree.tree_leaves(n.meta["val"])
        rounded = [
            result.to(kind.dtype) if isinstance(result, torch.Tensor) else result
            for result, kind in zip(results, kinds, strict=True)
        ]
        return pytree.tree_unflatten(rounded, tree)


def _in_float32(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALF else value
    half = isinstance(value, torch.Tensor) and value.dtype in _HALF
    return value.float() if half else value
