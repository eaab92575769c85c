"""What the integer kernels of a runtime want, as data: which ops they take, which grids, and where.

Sources: the selectors of onnxruntime's QDQ transformer (read off the files that it makes), TensorRT's rules for
explicit quantisation. `tests/targets/test_integer_census.py` holds every claim against the runtime itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scheme:
    """How one family of runtimes takes a quantised network.

    Attributes:
        name: of the dialect that the file is written in.
        dtype: of activations.
        symmetric: zero points are 0, so that a ReLU's output has 7 bits.
        outputs: integer kernels give integers: a grid behind every op. Otherwise an op's input is on a grid, its
            output is not, and of a sum with an op's output the other side is.
        glue: ops without weights that run in integers between those with weights.
        integer_bias: linear ops whose result stays in floats need an integer bias.
    """

    name: str
    dtype: torch.dtype
    symmetric: bool
    outputs: bool
    glue: frozenset[str] = frozenset()
    integer_bias: bool = False

    def limits(self, bits: int = 8) -> tuple[int, int]:
        """The integers of a grid of ``bits``."""
        if self.dtype == torch.uint8:
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def grid(self, low: float, high: float, bits: int = 8) -> tuple[float, int]:
        """Scale and zero point for values from ``low`` to ``high``; zero has a step of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        first, last = self.limits(bits)
        if self.symmetric:
            return max(-low, high) / last or 1.0, 0
        scale = (high - low) / (last - first) or 1.0
        return scale, round(first - low / scale)


# Moves take any grid as it is; these compute. Relu and clamps go into the grid of what they read
_ORT = frozenset(
    [
        "add",
        "mul",
        "sigmoid",
        "leaky_relu",
        "avg_pool2d",
        "normfold::global_pool",
        "cat",
        "max_pool2d",
    ]
)
SCHEMES = {
    "ort-x86": Scheme("ort-x86", torch.uint8, False, True, _ORT, integer_bias=True),
    "ort-arm": Scheme("ort-arm", torch.int8, False, True, _ORT, integer_bias=True),
    "trt": Scheme("trt", torch.int8, True, False),
    "trt-rtx": Scheme("trt-rtx", torch.int8, True, False),
}
