"""Make `import torchvision` work where its compiled operators are missing (CPU wheels of today).

torchvision registers fake kernels for operators that its C++ library should have defined; with
that library missing the import stops at the first one. Defining empty schemas is enough for models
that do not call them. Only tests need this.
"""

from __future__ import annotations

import re
import sys

import torch

_KEPT: list[torch.library.Library] = []
_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")


def install(limit: int = 40) -> None:
    """Import torchvision, defining every operator that it says is missing; idempotent."""
    for _ in range(limit):
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as error:
            match = _MISSING.search(str(error))
            if match is None:
                raise
            if not _KEPT:
                _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
            _KEPT[0].define(f"{match[1]}(Tensor x) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise RuntimeError("torchvision still misses operators")


install()
