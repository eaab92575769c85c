"""For every reason code, a smallest network that is declined for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.nets import Compose, conv, perturb

ANY_SIZE = (({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),)


@dataclass(frozen=True)
class Refusal:
    """A network of one input or two, and the pass (with its options) that declines a site of it."""

    wiring: Callable[..., Any]
    parts: Callable[[], dict[str, nn.Module]]
    shape: tuple[int, ...] = (2, 4, 5, 6)
    options: str = ""
    dynamic: Any = "batch"
    dead: bool = False  # one channel of every norm has scale zero
    step: str = "fold-affine"
    condition: tuple[int, ...] = ()  # shape of the second input

    @property
    def pipeline(self) -> str:
        """Text of the pipeline whose last pass declines."""
        setups = {
            "center-stream": "fold-affine{split-norms=true},",
            "compress-stream": "fold-affine{split-norms=true},center-stream,",
            "quantize-activations": "quantize-weights,",
            "keep-grids": "bake,",
        }
        setup = setups.get(self.step, "")
        options = f"{{{self.options}}}" if self.options else ""
        return f"canonicalize,{setup}{self.step}{options}"

    def build(self) -> tuple[nn.Module, Tensor]:
        module = perturb(Compose(self.wiring, **self.parts()))
        if self.dead:
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.weight.data[1] = 0.0
        return module, torch.randn(self.shape)

    def others(self) -> tuple[Tensor, ...]:
        """The second input."""
        return (torch.randn(self.condition),) if self.condition else ()


def _norm(**more: nn.Module) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"norm": nn.BatchNorm2d(4), **more}


class _Palette(nn.Linear):
    """A weight out of a table."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        table = torch.tensor([-1.7123, -0.4049, 0.1017, 0.3571, 2.2391])
        self.weight.data = table[torch.arange(256) % 5].view(16, 16)


def _attention(m: Any, x: Tensor) -> Any:
    scores = F.relu(m.q(x) @ m.k(x).transpose(1, 2))
    return m.norm((scores @ m.v(x)).transpose(1, 2))


def _left(m: Any, x: Tensor) -> Any:
    return m.norm(m.mix.weight @ x)


def _both(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.cat([m.norm(y), F.relu(y)], 1)


def _gated(m: Any, x: Tensor) -> Any:
    y = m.norm(F.relu(x))
    return m.conv(y * torch.sigmoid(x))


TOKENS = (2, 5, 6)


def _refusal(wiring: Callable[..., Any], shape: tuple[int, ...] = TOKENS, **more: Any) -> Refusal:
    """A row for center-stream (or ``step``): ``fc`` and ``out`` are linears of width 6, ``norm`` a LayerNorm."""

    def parts() -> dict[str, nn.Module]:
        norm = more.get("norm") or nn.LayerNorm(6)
        return {"fc": nn.Linear(6, 6), "norm": norm, "out": nn.Linear(6, 6)}

    step = more.get("step", "center-stream")
    return Refusal(wiring, parts, shape, more.get("options", ""), step=step)


def _post_norm(m: Any, x: Tensor) -> Any:
    x = m.norm(m.fc(x))
    return m.out(m.norm(x + F.gelu(x)))


REFUSALS: dict[str, Refusal] = {
    "NF101": Refusal(
        lambda m, x: m.norm(m.conv(x)),
        lambda: {"conv": conv(), "norm": nn.BatchNorm2d(4, track_running_stats=False)},
    ),
    "NF102": Refusal(
        lambda m, x: (m.norm(m.conv(x)), m.conv(F.relu(x))),
        _norm(conv=conv()),
        options="copy-shared=false",
    ),
    "NF103": Refusal(_both, _norm(conv=conv()), options="direction=backward"),
    "NF104": Refusal(lambda m, x: m.norm(F.gelu(x)), _norm()),
    "NF105": Refusal(lambda m, x: m.conv(F.gelu(m.norm(x))), _norm(conv=conv())),
    "NF106": Refusal(lambda m, x: m.conv(F.max_pool2d(m.norm(F.gelu(x)), 2)), _norm(conv=conv())),
    "NF107": Refusal(
        lambda m, x: m.conv(m.norm(F.gelu(x))), _norm(conv=conv()), dynamic=ANY_SIZE, dead=True
    ),
    "NF108": Refusal(
        lambda m, x: m.norm(m.fc(x)),
        lambda: {"fc": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)},
        (2, 6, 6),
    ),
    "NF109": Refusal(lambda m, x: F.gelu(m.norm(x)), _norm(), options="direction=backward"),
    "NF110": Refusal(lambda m, x: m.conv(m.norm(F.gelu(x)) + 1.5), _norm(conv=conv(padding=0))),
    "NF111": Refusal(
        lambda m, x: m.out(m.norm(F.gelu(x)) + m.conv(x)),
        _norm(conv=conv(), out=conv(padding=0)),
        dead=True,
    ),
    "NF112": Refusal(_gated, _norm(conv=conv(padding=0)), dead=True),
    "NF113": Refusal(
        _attention,
        lambda: {"norm": nn.BatchNorm1d(6), **{name: nn.Linear(6, 6) for name in "qkv"}},
        (2, 5, 6),
    ),
    "NF114": Refusal(lambda m, x: m.conv(m.norm(F.gelu(x))), _norm(conv=conv(4, 8))),
    "NF115": Refusal(_left, lambda: {"mix": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, (2, 6, 5)),
    "NF116": Refusal(lambda m, x: m.norm(x), lambda: {"norm": nn.LayerNorm((4, 5))}, (2, 4, 5)),
    "NF117": Refusal(
        lambda m, x: m.conv(m.norm(F.gelu(x))),
        _norm(conv=conv(padding=0)),
        options="direction=backward",
    ),
    "NF118": _refusal(_post_norm),
    "NF119": _refusal(lambda m, x: (lambda y: m.out(m.norm(y)) + F.gelu(y))(m.fc(x))),
    "NF120": _refusal(lambda m, x: m.out(m.norm(F.gelu(m.fc(x))))),
    "NF121": _refusal(
        lambda m, x: m.norm(m.fc(x)), norm=nn.LayerNorm((5, 6), elementwise_affine=False)
    ),
    "NF122": _refusal(lambda m, x: F.gelu(m.norm(m.fc(x))), options="bias-cost=1.5"),
    "NF123": _refusal(lambda m, x: (lambda y: (y, m.out(m.norm(y))))(m.fc(x))),
    "NF124": _refusal(lambda m, x: m.norm(m.fc(x)[..., None]), norm=nn.LayerNorm(1)),
    "NF125": _refusal(
        lambda m, x: m.out(m.norm(m.fc(x).unflatten(-1, (2, 3))).flatten(-2)),
        norm=nn.LayerNorm(3, elementwise_affine=False),
        step="compress-stream",
    ),
    "NF126": _refusal(
        lambda m, x: m.out(m.norm(m.fc(x))), step="replace-layernorm", options="norms=other"
    ),
    "NF127": _refusal(lambda m, x: m.out(m.norm(m.fc(x))), step="replace-layernorm"),
    "NF128": _refusal(lambda m, x: m.out(F.gelu(m.fc(x))), step="quantize-activations"),
    "NF129": Refusal(
        lambda m, x: m.conv(x),
        lambda: {"conv": conv()},
        step="quantize-weights",
        options="block=16",
    ),
    "NF130": Refusal(
        lambda m, x: m.fc(x),
        lambda: {"fc": nn.Linear(16, 4)},
        (2, 16),
        step="quantize-weights,quantize-weights",
    ),
    "NF131": Refusal(
        lambda m, x: m.fc(x), lambda: {"fc": nn.Linear(16, 4)}, (2, 16), step="keep-grids"
    ),
    "NF132": Refusal(
        lambda m, x: m.fc(x),
        lambda: {"fc": nn.Linear(16, 4)},
        (2, 16),
        step="quantize-weights",
        options="grid=e4m3 target=trt",
    ),
    "NF133": _refusal(
        lambda m, x: m.out(m.norm(m.fc(x))), step="fold-near-affine", options="variance=1"
    ),
    "NF134": Refusal(
        lambda m, x: m.out(F.normalize(m.fc(x), dim=-1)),
        lambda: {"fc": nn.Linear(6, 8), "out": nn.Linear(8, 4)},
        (2, 6),
        step="freeze-statistics",
    ),
    "NF135": Refusal(
        lambda m, x, c: m.out(m.norm(m.conv(x)) * m.gain(c)[:, :, None, None]),
        lambda: {
            "conv": conv(4, 4),
            "norm": nn.GroupNorm(2, 4),
            "gain": nn.Linear(3, 4),
            "out": conv(4, 4),
        },
        condition=(2, 3),
    ),
    "NF136": Refusal(lambda m, x: m.fc(x), lambda: {"fc": _Palette()}, (2, 16), step="keep-grids"),
    "NF137": Refusal(
        lambda m, x: m.a(x) + m.b(x),
        lambda: {
            "a": nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
            "b": nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        },
        step="merge-linear",
    ),
}
