"""Networks on which torch's own fuser is wrong, crashes or gives up, and normfold is right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets import Compose, conv, perturb
from tests.passes.judge import declines, fold, folded

WRONG = 1e-3  # far above float32 rounding: a relative error that means another function


def shared_conv() -> nn.Module:
    return Compose(
        lambda m, x: m.norm(m.conv(x)) + m.conv(x * 2), conv=conv(), norm=nn.BatchNorm2d(4)
    )


def two_norms() -> nn.Module:
    return Compose(
        lambda m, x: m.norm1(m.conv(x)) + m.norm2(m.conv(x * 2)),
        conv=conv(),
        norm1=nn.BatchNorm2d(4),
        norm2=nn.BatchNorm2d(4),
    )


def same_sizes() -> nn.Module:
    return Compose(lambda m, x: m.norm(m.fc(x)), fc=nn.Linear(6, 6), norm=nn.BatchNorm1d(6))


def other_sizes() -> nn.Module:
    return Compose(lambda m, x: m.norm(m.fc(x)), fc=nn.Linear(6, 6), norm=nn.BatchNorm1d(5))


def grouped_transposed() -> nn.Module:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    return Compose(lambda m, x: m.norm(m.conv(x)), conv=layer, norm=nn.BatchNorm2d(6))


def before_padded_conv() -> nn.Module:
    return Compose(lambda m, x: m.conv(m.norm(x)), conv=conv(), norm=nn.BatchNorm2d(4))


def fuser(module: nn.Module, x: Tensor) -> str:
    """What `torch.fx.experimental.optimization.fuse` makes of it: right, wrong, crashed or declined."""
    from torch.fx.experimental.optimization import fuse

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = module(x)
        try:
            fused = fuse(copy.deepcopy(module))
            found = fused(x)
        except Exception:
            return "crashed"
        if (found - wanted).abs().max() > WRONG * wanted.abs().max():
            return "wrong"
        left = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in fused.modules())
        return "declined" if left else "right"


class Traceable(nn.Module):
    """The same network as a plain symbolic trace, for a fuser that follows module calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Any:
        return self.inner.wiring(self.inner, x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("build", "shape", "theirs", "ours"),
    [
        (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4)), (2, 4, 5, 6), "right", ""),
        (shared_conv, (2, 4, 5, 6), "wrong", ""),
        (two_norms, (2, 4, 5, 6), "wrong", ""),
        (same_sizes, (2, 6, 6), "wrong", "NF108"),
        (other_sizes, (2, 5, 6), "crashed", "NF108"),
        (grouped_transposed, (2, 4, 5, 6), "declined", ""),
        (before_padded_conv, (2, 4, 5, 6), "declined", ""),
    ],
    ids=[
        "control",
        "shared-conv",
        "two-norms",
        "C==L",
        "C!=L",
        "grouped-transposed",
        "before-padded",
    ],
)
def test_trap(
    build: Callable[[], nn.Module], shape: tuple[int, ...], theirs: str, ours: str
) -> None:
    module, x = perturb(build()), torch.randn(shape)
    assert fuser(Traceable(module).eval() if isinstance(module, Compose) else module, x) == theirs
    outcome = fold(module, x)
    if ours:
        declines(outcome, ours)
    else:
        folded(outcome)


def test_grouped_transposed_by_torch_s_helper() -> None:
    """What the declined case would have become: torch's helper scales the wrong axis of a grouped weight."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    module, x = perturb(grouped_transposed()), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        wanted = module(x)
        try:
            found = fuse_conv_bn_eval(module.conv, module.norm, transpose=True)(x)  # type: ignore[operator, type-var, arg-type]
        except RuntimeError:
            found = None
    assert found is None or (found - wanted).abs().max() > WRONG * wanted.abs().max()
    folded(fold(module, x))
