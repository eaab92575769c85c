"""Modules that compute their weight (weight norm, spectral norm, weight standardisation) become plain ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument
from normfold.ir.provenance import module_path
from normfold.ops.linear import linear_of
from normfold.targets.surgery import Surgery


def made_plain(
    original: nn.Module, result: Graph, surgery: Surgery, node: fx.Node, name: str
) -> bool:
    """Note in ``surgery`` how the module of an op gets a weight that is a plain parameter.

    Returns:
        False where that is not known: the module is not parametrised, and does more than this op.
    """
    path = module_path(node)
    if not path or name not in ("weight", "bias"):
        return False
    if path in surgery.layers or _made_layer(path, result, surgery, node):
        return True
    remover = _remover(original.get_submodule(path), name)
    if not remover:
        return False
    if (path, name, remover) not in surgery.plain:
        surgery.plain.append((path, name, remover))
    return True


def _made_layer(path: str, result: Graph, surgery: Surgery, node: fx.Node) -> bool:
    """A layer of torch in place of a module that is one op."""
    ops = [
        other
        for other in result.nodes
        if other.op == "call_function" and not is_static(other) and module_path(other) == path
    ]
    twin = next((other for other in ops if other.name == node.name), None)
    linear = linear_of(twin) if twin is not None else None
    if twin is None or linear is None or len(ops) != 1:
        return False
    if linear.transposed or (linear.weight_position, linear.bias_position) != (1, 2):
        return False
    weight = argument(twin, "weight").meta["val"]
    bias, dtype = argument(twin, "bias") is not None, ""
    if weight.dtype != torch.float32:
        dtype = f", dtype={weight.dtype}"
    if not linear.kernel:
        text = f"nn.Linear({weight.shape[1]}, {weight.shape[0]}, bias={bias}{dtype})"
    else:
        groups = int(argument(twin, "groups"))
        parts = ", ".join(
            f"{part}={_pair(argument(twin, part))!r}" for part in ("stride", "padding", "dilation")
        )
        text = (
            f"nn.Conv{linear.kernel}d({weight.shape[1] * groups}, {weight.shape[0]}, "
            f"{tuple(weight.shape[2:])}, {parts}, groups={groups}, bias={bias}{dtype})"
        )
    surgery.layers[path] = text
    return True


def _remover(module: nn.Module, name: str) -> str:
    """What of `torch.nn.utils` makes a parametrised tensor a plain one; "" for one that is plain."""
    if name in getattr(module, "parametrizations", {}):
        return "parametrize.remove_parametrizations"
    kinds = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}
    hooks = module._forward_pre_hooks.values()
    names = [type(hook).__name__ for hook in hooks if getattr(hook, "name", None) == name]
    return next((kinds[kind] for kind in names if kind in kinds), "")


def _pair(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(int(size) for size in value)
