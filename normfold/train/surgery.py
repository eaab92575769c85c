"""Finding LayerNorms by what they compute, and putting another module in the place of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (shape of the probe for C features, where the features lie)
_PROBES = (((2, 3, -1), -1), ((2, -1, 3, 4), 1), ((2, -1, 5), 1))


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` wherever it is registered in ``model``."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # its fused path would compute a LayerNorm with the gain and bias of `new`
                    parent.activation_relu_or_gelu = 0


def is_layer_norm(module: nn.Module) -> bool:
    """True for LayerNorms, those of other libraries too, which need not derive from torch's."""
    return isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__


def gain_and_bias(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Its parameters, each None where it has none."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return (
        weight if isinstance(weight, Tensor) else None,
        bias if isinstance(bias, Tensor) else None,
    )


def size_and_axis(norm: nn.Module) -> tuple[int, int] | str:
    """How many features a LayerNorm normalises together and along which axis; or why it is none over one axis."""
    weight, bias = gain_and_bias(norm)
    shape: Any = getattr(norm, "normalized_shape", None if weight is None else weight.shape)
    if shape is None:
        return "does not tell its number of features"
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(sizes) != 1:
        return f"normalises {len(sizes)} axes together"
    features = int(sizes[0])
    if type(norm) is nn.LayerNorm:
        return features, -1
    if any(p.is_meta for p in norm.parameters()):
        return f"is not nn.LayerNorm but a {type(norm).__name__} without data: cannot be tried"
    for probe, axis in _PROBES:
        if _agrees(norm, [features if n < 0 else n for n in probe], axis, weight, bias):
            return features, axis
    return f"a {type(norm).__name__} that computes no LayerNorm along the last axis or axis 1"


@torch.no_grad()
def _agrees(
    norm: nn.Module, shape: list[int], axis: int, weight: Tensor | None, bias: Tensor | None
) -> bool:
    """True if the module computes the LayerNorm along ``axis`` on a random input of this shape."""
    like = weight if weight is not None else torch.empty(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(like.device, like.dtype) * 2 + 1
    try:
        y = norm.forward(x)
    except Exception:  # whatever it raises, it does not take this layout
        return False
    eps = getattr(norm, "eps", 1e-5)
    rows = x.movedim(axis, -1)
    wanted = F.layer_norm(rows, rows.shape[-1:], weight, bias, eps).movedim(-1, axis)
    tolerance = 1e-4 if x.dtype.itemsize >= 4 else 0.05
    return (
        isinstance(y, Tensor)
        and y.shape == x.shape
        and torch.allclose(y.to(wanted.dtype), wanted, tolerance, tolerance)
    )
