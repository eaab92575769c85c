"""How a fresh network becomes the result: as data, and as the text of a Python file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_CLASS = '''

class RMSNorm(nn.RMSNorm):
    """RMSNorm over one axis, with a bias behind it if asked for."""

    def __init__(self, features, eps, axis=-1, gain=True, bias=False, dtype=None):
        super().__init__(features, eps, gain, dtype=dtype)
        self.axis = axis
        self.register_parameter("bias", nn.Parameter(torch.zeros(features, dtype=dtype)) if bias else None)

    def forward(self, x):
        y = super().forward(x.movedim(self.axis, -1))
        return (y if self.bias is None else y + self.bias).movedim(-1, self.axis)
'''


@dataclass(frozen=True)
class RMSNorm:
    """What a LayerNorm became: RMSNorm over ``axis`` of ``features``."""

    features: int
    eps: float | None
    axis: int
    gain: bool
    bias: bool
    dtype: torch.dtype


@dataclass
class Surgery:
    """How a fresh network becomes the result.

    Attributes:
        state: every entry of the state dict that the changed network has.
        own: the state dict of the original as it is, with new values; the network it makes is the result where
            nothing else is needed.
        ties: names that share the tensor of another name.
        gone: paths of modules that do nothing now, and the name of the child that is left of one, or "".
        norms: LayerNorms that became RMSNorms, by path.
        plain: parametrised tensors that became plain ones: path, name, and what of `torch.nn.utils` does that.
        layers: modules that compute their weight, by the text of the plain layer that they became.
        made: parameters that the original does not have, or has in another shape.
        buffers: those with another value that the state dict of the original leaves out.
        moves: a new bias, and the bias of the batch norm behind it that can take it instead.
        gone_norms: paths of ``gone`` that no values of their parameters make neutral.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    norms: dict[str, RMSNorm] = field(default_factory=dict)
    plain: list[tuple[str, str, str]] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    moves: dict[str, str] = field(default_factory=dict)
    gone_norms: list[str] = field(default_factory=list)


def script_text(surgery: Surgery, weights: str) -> str:
    """The Python file whose ``apply`` turns a fresh original into the result."""
    own_class = any(norm.bias or norm.axis != -1 for norm in surgery.norms.values())
    parts = [
        f'"""The network of {weights}, made of a fresh original by normfold: `module = apply(module)`."""\n',
        "from pathlib import Path\n",
        "import torch" if _names_torch(surgery, own_class) else "",
        "from safetensors.torch import load_file",
        "from torch import nn" if _names_nn(surgery) else "",
        f"\nWEIGHTS = Path(__file__).with_name({weights!r})",
        _CLASS.rstrip() if own_class else "",
        '\n\ndef apply(module):\n    """Change a fresh original in place, and load the weights; in eval mode."""',
        "    state = load_file(WEIGHTS)",
        *(_lines(surgery)),
        "    module.load_state_dict(state)",
        "    return module.eval()",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _names_torch(surgery: Surgery, own_class: bool) -> bool:
    texts = [*surgery.layers.values(), *(_norm_text(surgery, path) for path in surgery.norms)]
    return own_class or any("torch." in text for text in texts)  # types


def _names_nn(surgery: Surgery) -> bool:
    return (
        bool(surgery.norms or surgery.layers or surgery.made or surgery.plain)
        or "" in surgery.gone.values()
    )


def _norm_text(surgery: Surgery, path: str) -> str:
    norm = surgery.norms[path]
    dtype = "" if norm.dtype == torch.float32 else f", dtype={norm.dtype}"
    if norm.axis == -1 and not norm.bias:
        gain = "" if norm.gain else ", elementwise_affine=False"
        return f"nn.RMSNorm({norm.features}, eps={norm.eps!r}{gain}{dtype})"
    return f"RMSNorm({norm.features}, {norm.eps!r}, axis={norm.axis}, gain={norm.gain}, bias={norm.bias}{dtype})"


def _lines(surgery: Surgery) -> Iterator[str]:
    """The body of ``apply``: what changes, a loop for each kind of change."""
    for child in sorted(set(surgery.gone.values())):
        yield _loop([path for path, left in surgery.gone.items() if left == child])
        left = f"module.get_submodule(name + {f'.{child}'!r})" if child else "nn.Identity()"
        yield f"        module.set_submodule(name, {left})"
    texts = {path: _norm_text(surgery, path) for path in surgery.norms} | surgery.layers
    for text in dict.fromkeys(texts.values()):
        yield _loop([path for path in texts if texts[path] == text])
        yield f"        module.set_submodule(name, {text})"
    for leaf, remover in dict.fromkeys((leaf, remover) for _, leaf, remover in surgery.plain):
        yield _loop([path for path, *how in surgery.plain if how == [leaf, remover]])
        yield f"        nn.utils.{remover}(module.get_submodule(name), {leaf!r})"
    if surgery.made:
        yield _loop(surgery.made)
        yield '        owner, _, leaf = name.rpartition(".")'
        yield "        setattr(module.get_submodule(owner), leaf, nn.Parameter(state[name]))"
    if surgery.buffers:
        yield _loop(surgery.buffers)
        yield '        owner, _, leaf = name.rpartition(".")'
        yield "        setattr(module.get_submodule(owner), leaf, state.pop(name))"
    yield from (f"    state[{name!r}] = state[{other!r}]" for name, other in surgery.ties.items())


def _loop(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"    for name in ({names[0]!r},):"
    return "\n".join(["    for name in (", *(f"        {name!r}," for name in names), "    ):"])
