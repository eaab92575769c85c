"""Named pipelines: what `--to NAME` runs. Each is one line of pipeline text, of exact passes only."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path

from normfold.errors import UsageError

PRESETS = {
    "folded": "canonicalize,fold-affine,restore,bake",
    "rmsnorm": "canonicalize,fold-affine{split-norms=true},center-stream,restore,bake",
    "crmsnorm": "canonicalize,fold-affine{split-norms=true},center-stream,compress-stream,restore,bake",
    "baked": "canonicalize,restore,bake",
}
# leaves weights on the grids that they are on: a factor of a row is one of its scale, that of a column is not
KEEPS_GRIDS = "canonicalize,fold-affine{direction=backward},restore,bake"

_KIND = re.compile(r'^    kind: ClassVar\[str\] = "(\w+)"', re.MULTILINE)


@cache
def trained() -> tuple[str, ...]:
    """Kinds of norms that LayerNorms are replaced by; the network is trained in between, so that no pipeline says
    it. Read off the sources in `normfold.nn`, which import torch."""
    found = []
    for path in sorted((Path(__file__).parents[1] / "nn").glob("*.py")):
        for block in re.split(r"^class ", path.read_text(), flags=re.MULTILINE)[1:]:
            kind = _KIND.search(block)
            if kind is not None and "preset: ClassVar[bool] = False" not in block:
                found.append(kind[1])
    return tuple(found)


def preset(name: str) -> str:
    """Pipeline text of a preset.

    Raises:
        UsageError: no such preset.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in trained():
        raise UsageError(
            f"`{name}` changes the function, and is trained",
            hint="`normfold convert` and `normfold distill` do that, with `--data`",
        )
    close = difflib.get_close_matches(name, (*PRESETS, *trained()), 1)
    raise UsageError(
        f"unknown preset `{name}`",
        hint=f"did you mean `{close[0]}`?"
        if close
        else f"`--to` takes one of: {', '.join((*PRESETS, *trained()))}",
    )
