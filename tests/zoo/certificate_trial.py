"""One network of the zoo, certified: folded, and centred where it has LayerNorms, over several seeds."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from normfold.ir.evaluation import Evaluator, Float64
from normfold.judge.certificate import certify
from normfold.rewrite import parse, run_pipeline
from tests.zoo.ln_models import ln_build, ln_members
from tests.zoo.models import Member, build, members
from tests.zoo.trial import captured

FOLDED = "canonicalize,fold-affine,restore"
CENTRED = "canonicalize,fold-affine{split-norms=true},center-stream,restore"
MORE_SEEDS = 19  # with one prime, after the first with three


@dataclass
class CertificateRow:
    """What the certificate says of one network.

    Attributes:
        state: of the first seed.
        sites, covered: norms and constants that a pass met, and those behind certified outputs only.
        uncovered: ops without a meaning, with the number of calls.
        seeds: tried in all; ``alarms`` of them found a difference.
        seconds, float64: of processor time for the certificate, and of both networks in float64 at the size of the
            capture.
    """

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    state: str = ""
    sizes: str = ""
    outputs: int = 0
    sites: dict[str, str] = field(default_factory=dict)
    covered: int = 0
    uncovered: dict[str, int] = field(default_factory=dict)
    seeds: int = 0
    alarms: int = 0
    seconds: float = math.nan
    float64: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def certificate_members() -> list[Member]:
    """Networks with BatchNorms, then those with LayerNorms."""
    return [*members(), *ln_members()]


def certificate_trial(member: Member) -> CertificateRow:
    """Certify one member; failures are written into the row."""
    row = CertificateRow(member.source, member.family, member.name)
    try:
        _run(member, row)
    except Exception as error:  # the zoo goes on; the row says what happened
        text = " ".join(str(error).split())
        row.error = f"{type(error).__name__}: {text[:400]}"
    row.ok = not row.error
    return row


def _run(member: Member, row: CertificateRow) -> None:
    centred = member in ln_members()
    if centred:
        module, args = ln_build(member)
    else:
        module, x = build(member, False)
        args = (x,)
    graph, _, row.note = captured(module, args)
    result, _ = run_pipeline(graph, parse(CENTRED if centred else FOLDED))
    start = time.process_time()
    found = certify(graph, result)
    row.seconds = time.process_time() - start
    row.state, row.sizes, row.outputs = found.state, found.sizes, len(found.outputs)
    row.covered = len(found.covered)
    row.sites = dict.fromkeys(found.covered, "covered") | dict.fromkeys(found.left, "left")
    calls: Counter[str] = Counter()
    for item in found.uncovered:
        calls[f"{item.op}: {item.why}"] += item.count
    row.uncovered = dict(calls)
    row.seeds, row.alarms = 1, int(found.state == "failed")
    while row.seeds <= MORE_SEEDS:
        row.alarms += not certify(graph, result, row.seeds, primes=1).ok
        row.seeds += 1
    leaves = [leaf for leaf in graph.args if isinstance(leaf, torch.Tensor)]
    start = time.process_time()
    if len(leaves) == len(graph.args) and not graph.kwargs:
        for network in (graph, result):
            Evaluator(network.module, Float64())(*leaves)
        row.float64 = time.process_time() - start
    if row.alarms:
        row.error = f"{row.alarms} of {row.seeds} seeds find a difference: {found.failures()}"
