"""Named pipelines: what `--to NAME` runs. Each is one line of pipeline text, of exact passes only."""

from __future__ import annotations

import difflib

from normfold.errors import UsageError

PRESETS = {
    "folded": "canonicalize,fold-affine,restore,bake",
    "rmsnorm": "canonicalize,fold-affine{split-norms=true},center-stream,restore,bake",
    "crmsnorm": "canonicalize,fold-affine{split-norms=true},center-stream,compress-stream,restore,bake",
    "baked": "canonicalize,restore,bake",
}

# what LayerNorms are replaced by; the network is trained in between, so that no pipeline says it
TRAINED = ("prepbn", "repbn", "bn", "un", "affine")


def preset(name: str) -> str:
    """Pipeline text of a preset.

    Raises:
        UsageError: no such preset.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in TRAINED:
        raise UsageError(
            f"`{name}` changes the function, and is trained",
            hint="`normfold convert` and `normfold distill` do that, with `--data`",
        )
    close = difflib.get_close_matches(name, (*PRESETS, *TRAINED), 1)
    raise UsageError(
        f"unknown target `{name}`",
        hint=f"did you mean `{close[0]}`?"
        if close
        else f"`--to` takes one of: {', '.join((*PRESETS, *TRAINED))}",
    )
