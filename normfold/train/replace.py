"""LayerNorms of a module replaced by norms that are affines in eval mode.

Without a start a new norm takes the LayerNorm's gain and bias and knows no statistics: for training from
scratch. With one, it computes in eval mode the affine ``y = a x + b`` that fits the LayerNorm's own output
best, per channel, over the batches given (`normfold.nn.Moments`), with the statistics of the same batches: for
pretrained networks.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn import KINDS, Affine, Moments, OfflineNorm, PRepBN
from normfold.train.batches import Forward, modes, run
from normfold.train.surgery import gain_and_bias, is_layer_norm, put, size_and_axis

_FROM_THE_NORM = ("features", "axis", "device", "dtype")


class Replaced(list[str]):
    """The paths of the norms that were replaced; ``kept`` says of the other selected ones why not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, str] = {}


def replace_norms(
    model: nn.Module,
    to: str = "prepbn",
    *,
    norms: str | Sequence[str] = "*",
    start: Iterable[Any] | None = None,
    forward: Forward | None = None,
    **options: Any,
) -> Replaced:
    """Replace LayerNorms over one axis, last or channels-first, in place.

    Device, dtype and training mode stay. A norm that is registered in several places is replaced once for all of
    them. A LayerNorm's missing gain or bias stays fixed at 1 or 0 in the LayerNorm of a PRepBN.

    Args:
        model: any module that contains LayerNorms.
        to: `affine`, `bn`, `powernorm`, `prepbn`, `repbn` or `un`.
        norms: dotted paths, or patterns with ``*``, of the norms to replace.
        start: batches (as `normfold.train.refresh_statistics` takes them) for the least-squares start.
        forward: ``forward(model, batch)``, for batches that need another call.
        options: of the new norm, such as ``eta``, ``momentum`` or ``warmup``.

    Returns:
        The paths replaced, in the model's order, and in ``kept`` those that were not, with the reason.

    Raises:
        UsageError: unknown ``to`` or option, a pattern that selects no LayerNorm, no batch in ``start``.
    """
    kind = _kind(to, options)
    chosen = _select(model, [norms] if isinstance(norms, str) else norms)
    result = Replaced()
    new: dict[str, OfflineNorm] = {}
    for path, norm in chosen.items():
        found = size_and_axis(norm) if path else "is the whole model: nothing holds it"
        if isinstance(found, str):
            result.kept[path] = found
        else:
            like = _tensor_like(model, path, norm)
            new[path] = _build(kind, norm, like, *found, options)
    if start is not None and new:
        fits = _fit(model, {path: (chosen[path], new[path]) for path in new}, start, forward)
        for path, (moments, scale, shift) in fits.items():
            new[path].start(scale, shift, moments.mean, moments.mean_square)
        for path in new.keys() - fits.keys():
            result.kept[path] = "was never called on the batches of `start`"
    for path, replacement in new.items():
        if path not in result.kept:
            put(model, chosen[path], replacement)
            result.append(path)
    return result


def _kind(to: str, options: dict[str, Any]) -> type[OfflineNorm]:
    if to not in KINDS:
        raise _unknown(f"unknown norm `{to}`", to, list(KINDS))
    known = [n for n in inspect.signature(KINDS[to]).parameters if n not in _FROM_THE_NORM]
    for name in options:
        if name not in known:
            raise _unknown(f"`{to}` has no option `{name}`", name, known)
    return KINDS[to]


def _unknown(what: str, name: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, 1)
    return UsageError(
        what, hint=f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(known)}"
    )


def _select(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The LayerNorms of which some path matches, each by its first path."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if is_layer_norm(module):
            paths.setdefault(module, []).append(path)
    every = [path for of_one in paths.values() for path in of_one]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in every):
            if not every:
                raise UsageError("the model has no LayerNorm")
            raise _unknown(f"no LayerNorm is called `{pattern}`", pattern, every)
    return {
        of_one[0]: norm
        for norm, of_one in paths.items()
        if any(fnmatchcase(path, pattern) for path in of_one for pattern in patterns)
    }


def _tensor_like(model: nn.Module, path: str, norm: nn.Module) -> Tensor:
    """A tensor of the device and dtype that a norm works in: its own, its parent's or the model's."""
    parent = model.get_submodule(path.rpartition(".")[0])
    for module in (norm, parent, model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.empty(0)


@torch.no_grad()
def _build(
    kind: type[OfflineNorm],
    norm: nn.Module,
    like: Tensor,
    features: int,
    axis: int,
    options: dict[str, Any],
) -> OfflineNorm:
    weight, bias = gain_and_bias(norm)
    build: Any = kind
    if kind is PRepBN:
        options = {"ln_eps": getattr(norm, "eps", 1e-5), **options}
    new: OfflineNorm = build(features, axis=axis, device=like.device, dtype=like.dtype, **options)
    names = ("scale", "shift") if kind is Affine else ("weight", "bias")
    for name, value in zip(names, (weight, bias), strict=True):
        if value is not None:
            new.get_parameter(name).copy_(value)
        if kind is PRepBN:
            branch = new.get_parameter(f"ln_{name}")
            branch.requires_grad_(value is not None and value.requires_grad)
            if value is not None:
                branch.copy_(value)
    new.training = norm.training  # not train(): a PRepBN would warn of its mix
    for child in new.children():
        child.training = norm.training
    return new


def _fit(
    model: nn.Module,
    pairs: dict[str, tuple[nn.Module, OfflineNorm]],
    batches: Iterable[Any],
    forward: Forward | None,
) -> dict[str, tuple[Moments, Tensor, Tensor]]:
    """Moments, scale and shift of every LayerNorm that was called, from one pass in eval mode."""
    moments = {path: Moments(new.features) for path, (_, new) in pairs.items()}
    with ExitStack() as hooks:
        for path, (norm, new) in pairs.items():

            def measure(
                _: nn.Module,
                given: tuple[Tensor, ...],
                y: Tensor,
                new: OfflineNorm = new,
                of: Moments = moments[path],
            ) -> None:
                of.update(new.prepare(given[0]), y, axis=new.axis)

            hooks.callback(norm.register_forward_hook(measure).remove)
        with modes(model, lambda module: False):
            if not run(model, batches, forward):
                raise UsageError("no batch in `start`")
    fits = {}
    for path, (_, new) in pairs.items():
        moments[path].gather(next(new.parameters()).device)
        if moments[path].count > 1:
            fits[path] = (moments[path], *moments[path].affine())
    return fits
