"""One network at its real input size, with the small outputs of a trained head, through the facade to ONNX files.

Detectors and taggers end in sigmoids whose biases were trained to be rare: logits near -8. A file is judged at
outputs of 1e-4 then, made from sums over 50,000 pixels. The passes are right on these networks (the other parts
say so in float64), so that every refusal is a false alarm of the verdict, or a fault of the export.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import normfold
from normfold.errors import NormfoldError
from normfold.ir import Graph
from normfold.job.presets import preset
from normfold.report import Check, Report
from normfold.rewrite import parse, run_pipeline
from tests import torchvision_shim
from tests.zoo.ln_models import is_layer_norm, ln_members, shift_means
from tests.zoo.models import LARGEST, Member, calibrate, members, perturb
from tests.zoo.trial import SPREAD, captured, outputs, spread

PRESETS = ("baked", "folded", "rmsnorm")
SIDE = 224  # pixels, at least
DEAREST = 8e9  # multiply-accumulates of one image
BIAS = -8.0  # of the classifier, in front of the sigmoid
CLASSES = 1000  # where the network itself has none


@dataclass
class SizeRow:
    """What became of one network.

    ``outcomes`` by preset: equivalent, REFUSED, TRACEBACK, or same where the passes leave the graph of ``baked``.
    ``used`` by preset and check: the largest share of its tolerance that an error used. ``left_out`` says why a
    network is not run.
    """

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    left_out: str = ""
    side: int = 0
    parameters: int = 0
    macs: int = 0
    largest: float = math.nan
    spread: float = math.nan
    outcomes: dict[str, str] = field(default_factory=dict)
    used: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def size_members() -> list[Member]:
    """The smallest member of each of timm's families, of each kind of norm in turn; no network twice."""
    batch = [member for member in members() if member.source == "timm"]
    layer = [member for member in ln_members() if member.source == "timm-ln"]
    pairs = [member for pair in zip_longest(batch, layer) for member in pair if member]
    names = dict.fromkeys((member.family, member.name) for member in pairs)
    return [Member("size", family, name) for family, name in names]


class Rare(nn.Module):
    """A classifier of rare classes: the sigmoids of its logits, and the logits, where no sigmoid hides an error.

    Args:
        net: returns (N, classes) logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return torch.sigmoid(logits), logits


def size_build(member: Member) -> tuple[nn.Module, Tensor]:
    """The network with perturbed numbers, fitting statistics and a trained-like head; two images."""
    torchvision_shim.install()
    import timm

    torch.manual_seed(0)
    net = timm.create_model(member.name, pretrained=False)
    if not net.num_classes:
        net = timm.create_model(member.name, pretrained=False, num_classes=CLASSES)
    size = net.pretrained_cfg.get("input_size", (3, SIDE, SIDE))
    if not net.pretrained_cfg.get("fixed_input_size"):
        size = (size[0], max(size[1], SIDE), max(size[2], SIDE))
    perturb(net.eval())
    if any(map(is_layer_norm, net.modules())):
        shift_means(net)
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    calibrate(net, x)
    _train_head(net, x)
    return Rare(net).eval(), x


def _train_head(net: nn.Module, x: Tensor) -> None:
    """Logits of -8 and a deviation of 1."""
    with torch.no_grad():
        logits = net(x)
        classes = logits.shape[-1]
        last = [
            part
            for part in net.modules()
            if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.shape[0] == classes
        ]
        for part in last:
            part.weight.div_(logits.std())
            if part.bias is not None:
                part.bias.copy_(part.bias / logits.std() + BIAS)


def size_trial(member: Member) -> SizeRow:
    """Run one member; failures are written into the row."""
    row = SizeRow(member.source, member.family, member.name)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _run(member, row)
        except Exception as error:  # the zoo goes on; the row says what happened
            row.error = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    row.ok = not row.error
    row.total_seconds = time.perf_counter() - start
    return row


def _run(member: Member, row: SizeRow) -> None:
    module, x = size_build(member)
    row.side = x.shape[-1]
    row.parameters = sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad():
        y, _ = outputs(module(x))
    with FlopCounterMode(display=False) as counter:
        module(x[:1])
    row.macs = counter.get_total_flops() // 2
    row.left_out = _too_large(row)
    if row.left_out:
        return
    row.largest, row.spread = float(y.max()), spread(y)
    if not (row.largest < 0.1 and row.spread > SPREAD):
        row.error = (
            f"not like a trained head: up to {row.largest:.1e}, two images {row.spread:.1e} apart"
        )
        return
    graph, row.seconds["capture"], row.note = captured(module, (x,))
    for name in _presets(graph, row):
        start = time.perf_counter()
        row.outcomes[name] = _outcome(graph, name, row)
        row.seconds[name] = time.perf_counter() - start


def _too_large(row: SizeRow) -> str:
    if row.parameters > LARGEST:
        return f"{row.parameters / 1e6:.0f} M parameters"
    if row.macs > DEAREST:
        return f"{row.macs / 1e9:.1f} G multiply-accumulates"
    return ""


def _presets(graph: Graph, row: SizeRow) -> Iterator[str]:
    """Those that make another graph than the one before."""
    yield "baked"
    for name, of in (("folded", "fold-affine"), ("rmsnorm", "center-stream")):
        _, reports = run_pipeline(graph, parse(preset(name))[:-2])
        if any(item.modified for item in reports if item.spec.startswith(of)):
            yield name
        else:
            row.outcomes[name] = "same"


def _outcome(graph: Graph, name: str, row: SizeRow) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = normfold.convert(graph, to=name, export="onnx", output=Path(folder))
        except NormfoldError as error:
            row.error = " | ".join(filter(None, [name, error.what, error.found, error.where]))[:600]
            return "REFUSED"
        except Exception as error:
            row.error = f"{name}: {type(error).__name__}: {error}"[:600]
            return "TRACEBACK"
    _record(result.report, name, row)
    states = {item.verdict.state for item in result.report.artefacts}
    if result.ok and states == {"pass"}:
        return "equivalent"
    row.error = f"{name}: " + ("; ".join(result.report.failures()) or f"states {states}")[:600]
    return "REFUSED"


def _record(report: Report, name: str, row: SizeRow) -> None:
    checks = [check for check in report.all_checks() if isinstance(check, Check)]
    row.used[name] = {
        check.kind: max(
            (one.error / one.tolerance for one in check.outputs if one.tolerance), default=0.0
        )
        for check in checks
    }
    row.notes[name] = [f"{check.kind}: {check.note}" for check in checks if check.note]
