"""Names of passes: our own table, and what other packages add by the entry-point group `normfold.passes`."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from normfold.errors import UsageError

if TYPE_CHECKING:
    from normfold.rewrite.base import Pass

# name -> module:class, imported when asked for
BUILT_IN = {
    "canonicalize": "normfold.passes.canonicalize:Canonicalize",
    "fold-affine": "normfold.passes.fold_affine:FoldAffine",
    "center-stream": "normfold.passes.center_stream:CenterStream",
    "compress-stream": "normfold.passes.compress_stream:CompressStream",
    "rotate-stream": "normfold.passes.rotate_stream:RotateStream",
    "replace-layernorm": "normfold.passes.replace_layernorm:ReplaceLayernorm",
    "equalize": "normfold.passes.equalize:Equalize",
    "correct-bias": "normfold.passes.correct_bias:CorrectBias",
    "migrate-scale": "normfold.passes.migrate_scale:MigrateScale",
    "quantize-weights": "normfold.passes.quantize_weights:QuantizeWeights",
    "quantize-activations": "normfold.passes.quantize_activations:QuantizeActivations",
    "quantize-dynamic": "normfold.passes.quantize_dynamic:QuantizeDynamic",
    "restore": "normfold.passes.restore:Restore",
    "bake": "normfold.passes.bake:Bake",
}


def plugins() -> dict[str, EntryPoint]:
    """Passes that installed packages offer."""
    return {point.name: point for point in entry_points(group="normfold.passes")}


def names() -> list[str]:
    """Every pass name, built-in ones first."""
    return [*BUILT_IN, *(name for name in plugins() if name not in BUILT_IN)]


def find(name: str) -> type[Pass]:
    """The pass class of a name.

    Raises:
        UsageError: no such pass (with a did-you-mean), or a plug-in that reuses a built-in name.
    """
    outside = plugins()
    if name in BUILT_IN:
        if name in outside:
            raise UsageError(
                f"a plug-in redefines the built-in pass `{name}`", found=outside[name].value
            )
        module, _, attribute = BUILT_IN[name].partition(":")
        kind: Any = getattr(importlib.import_module(module), attribute)
        return kind  # type: ignore[no-any-return]
    if name in outside:
        return outside[name].load()  # type: ignore[no-any-return]
    close = difflib.get_close_matches(name, names(), 1)
    raise UsageError(
        f"unknown pass `{name}`",
        hint=f"did you mean `{close[0]}`?" if close else f"passes: {', '.join(names())}",
    )
