"""Run a graph as a runtime would that computes everything in the types of the graph.

torch's own kernels on the CPU sum the squares of a half-precision norm in float32, and so does onnxruntime: what
overflows on a GPU passes there. Here every step of a norm is rounded to its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.graph.graph import argument, op_name

_HALF = (torch.float16, torch.bfloat16)
_NORMS = {"layer_norm", "rms_norm", "group_norm", "instance_norm"}


class StrictInterpreter(fx.Interpreter):
    """Runs a GraphModule; norms in half precision go step by step."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and op_name(n) in _NORMS:
            args: Any = self.fetch_args_kwargs_from_env(n)[0]
            if args[0].dtype in _HALF:
                return _norm(n, args[0], self)
        return super().run_node(n)

    @torch.no_grad()
    def __call__(self, leaves: Sequence[Any]) -> list[Tensor]:
        """Flat outputs for flat inputs."""
        results = pytree.tree_leaves(self.run(*leaves, enable_io_processing=False))
        return [leaf for leaf in results if isinstance(leaf, Tensor)]


def _norm(node: fx.Node, x: Tensor, interpreter: fx.Interpreter) -> Tensor:
    name, shape = op_name(node), x.shape
    if name == "group_norm":
        x = x.reshape(shape[0], int(argument(node, "num_groups")), -1)
    elif name == "instance_norm":
        x = x.reshape(*shape[:2], -1)
    over = len(argument(node, "normalized_shape")) if name in ("layer_norm", "rms_norm") else 1
    dims = list(range(-over, 0))
    eps = argument(node, "eps")
    if name != "rms_norm":
        x = x - x.mean(dims, keepdim=True)
    power = (x * x).mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)
    x = (x / power.sqrt()).reshape(shape)
    per_channel = name in ("group_norm", "instance_norm")
    for part, apply in (("weight", torch.mul), ("bias", torch.add)):
        source = argument(node, part)  # an RMS norm has no bias
        if source is not None:
            value = interpreter.env[source]
            x = apply(x, value.reshape(-1, *[1] * (len(shape) - 2)) if per_channel else value)
    return x
