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
            _define(_KEPT[0], match[1])
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise RuntimeError("torchvision still misses operators")


def _define(library: torch.library.Library, name: str) -> None:
    if name != "nms":
        library.define(f"{name}(Tensor x) -> Tensor")
        return
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    torch.library.register_fake("torchvision::nms", _nms_shape, lib=library)


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: indices of the boxes that are kept, best first."""
    order, kept = scores.argsort(descending=True, stable=True), []
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = torch.maximum(dets[order, :2], dets[best, :2])
        high = torch.minimum(dets[order, 2:], dets[best, 2:])
        common = (high - low).clamp(min=0).prod(1)
        order = order[common / (areas[order] + areas[best] - common) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)


def _nms_shape(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    return dets.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


install()
