"""How far a user trusts a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from normfold.errors import UsageError

# What of them is not admitted loads files, downloads or runs programs.
_WIDE = ("torch", "numpy", "torchvision", "timm", "transformers", "setuptools", "pip")


@dataclass(frozen=True)
class Trust:
    """How far a file is trusted: extra packages by dotted prefix, or pickle without limits."""

    modules: tuple[str, ...] = ()
    pickle: bool = False

    @classmethod
    def of(cls, modules: Sequence[str], pickle: bool) -> Trust:
        """Check the names given to ``--trust-module``; raises UsageError on a wrong one."""
        for name in modules:
            if not all(part.isidentifier() for part in name.split(".")):
                raise UsageError(
                    f"`--trust-module {name}` is not a package or module name",
                    hint="write it as in an import statement: `--trust-module myproject.models`",
                )
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in _WIDE:
                raise UsageError(
                    f"`--trust-module {name}` would let a file call "
                    + (f"all of {top}" if top in _WIDE else "the standard library"),
                    hint="if you trust the file completely, say so with `--trust-pickle`",
                )
        return cls(tuple(modules), pickle)
