"""Networks that went through normfold and came back to PyTorch, and how far they are from the original."""

from __future__ import annotations

import copy
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normfold
from normfold.ir.fresh import fresh
from normfold.targets.reloaded import unloaded

IMAGE = torch.randn(2, 3, 32, 32)


def perturbed(net: nn.Module) -> nn.Module:
    """No trivial statistics, and gains of both signs."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=random) + 0.5)
            elif value.dim() == 1 and name.endswith(("weight", "bias", "gamma", "mean")):
                value.add_(0.7 * torch.randn(value.shape, generator=random))
    return net.eval()


def applied(net: nn.Module, result: Any) -> nn.Module:
    """Run the line that was printed on a copy of the original that holds nothing but NaN."""
    (note,) = [text for text in result.report.notes if text.startswith("back in PyTorch")]
    names: dict[str, Any] = {"module": unloaded(net)}
    exec(re.findall(r"`([^`]*)`", note)[-1], names)
    made = names["module"]
    assert isinstance(made, nn.Module)
    return made


def outputs(net: nn.Module, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
    """In float64."""

    def wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    with torch.no_grad():
        found = copy.deepcopy(fresh(net)).double()(
            *map(wide, inputs), **{k: wide(v) for k, v in named.items()}
        )
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def largest_error(net: nn.Module, made: nn.Module, *inputs: Tensor, **named: Tensor) -> float:
    pairs = zip(outputs(net, *inputs, **named), outputs(made, *inputs, **named), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def kinds(net: nn.Module) -> Counter[str]:
    """Norms of a network by class."""
    return Counter(type(m).__name__ for m in net.modules() if re.search("Norm", type(m).__name__))


def convert(net: Any, folder: Path, to: str, **options: Any) -> Any:
    result = normfold.convert(net, to=to, export="module", output=folder, **options)
    assert result.ok
    return result


def back(net: nn.Module, folder: Path, to: str, *inputs: Tensor, **options: Any) -> nn.Module:
    """The network after the whole way, equal to the original."""
    net = perturbed(net)
    made = applied(net, convert(net, folder, to, inputs=inputs, **options))
    assert largest_error(net, made, *inputs) < 1e-6
    return made
