"""Norms of normfold to the affines that they compute in eval mode: ``x * scale + shift``, two constants each."""

from __future__ import annotations

import torch
from torch import nn

from normfold.nn import Affine, OfflineNorm, PowerNorm
from normfold.train.surgery import put


def finalize(model: nn.Module) -> nn.Module:
    """Replace every norm of normfold by an `Affine` with what it computes in eval mode, in place.

    A PowerNorm with groups keeps its scaling in front, which is not an affine. Modes, devices and dtypes stay.

    Returns:
        The model; another module only if the model itself is a norm.
    """
    if isinstance(model, OfflineNorm):
        return _final(model)
    for module in list(model.modules()):
        if isinstance(module, OfflineNorm) and not isinstance(module, Affine):
            put(model, module, _final(module))
    return model


def _final(norm: OfflineNorm) -> nn.Module:
    if isinstance(norm, Affine):
        return norm
    with torch.no_grad():
        scale, shift = norm.affine()
    dtype = next(norm.parameters()).dtype
    final = Affine(norm.features, axis=norm.axis, device=scale.device, dtype=dtype)
    final.start(scale, shift, shift, shift)
    final.training = norm.training
    if isinstance(norm, PowerNorm) and norm.scaling is not None:
        scaled = nn.Sequential(norm.scaling, final)
        scaled.training = norm.training
        return scaled
    return final
