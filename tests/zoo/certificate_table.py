"""The certificates of the zoo as text: a row for each network, then shares, and each op that is not covered."""

from __future__ import annotations

import math
import statistics
from collections import Counter

from tests.zoo.certificate_trial import CertificateRow

NEEDED = 0.95  # of the networks, certified whole
HEADER = f"{'family':25} {'model':30} {'state':9} {'sites':>9} {'seeds':>5} {'seconds':>8} {'float64':>8}  sizes"


def line(row: CertificateRow) -> str:
    """What is certified, processor seconds for three primes, and of both networks in float64."""
    text = (
        f"{row.family[:25]:25} {row.model[:30]:30} {row.state:9} {row.covered:4}/{len(row.sites):4} {row.seeds:5} "
        f"{row.seconds:7.2f}s {row.float64:7.2f}s  {row.sizes[:40]}"
    )
    ops = [f"{count} x {op}" for op, count in row.uncovered.items()]
    return "\n      ".join([text, *filter(None, [row.error, *ops])])


def summary(rows: list[CertificateRow], whole: bool) -> bool:
    """Print totals; True where a seed found a difference, or too few networks are certified whole."""
    print()
    low = False
    for source in dict.fromkeys(row.source for row in rows):
        group = [row for row in rows if row.source == source and row.state]
        certified = sum(row.state == "certified" for row in group)
        sites, covered = sum(len(row.sites) for row in group), sum(row.covered for row in group)
        seeds, alarms = sum(row.seeds for row in group), sum(row.alarms for row in group)
        print(
            f"{source}: {certified} of {len(group)} networks certified whole, {covered} of {sites} sites, "
            f"{alarms} false alarms over {seeds} seeds"
        )
    known = [row for row in rows if row.state]
    certified = sum(row.state == "certified" for row in known)
    if whole:
        low = certified < NEEDED * len(known)
        print(f"needed: {math.ceil(NEEDED * len(known))} of {len(known)}; there are {certified}")
    ratios = [row.seconds / row.float64 for row in known if row.float64 > 0]
    if ratios:
        print(
            f"processor time, to float64 at the captured size: median {statistics.median(ratios):.2f}"
        )
    calls: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for row in known:
        calls.update(row.uncovered)
        networks.update(row.uncovered.keys())
    for op, count in calls.most_common():
        print(f"  {op}: {count} calls in {networks[op]} networks")
    for row in rows:
        if not row.ok:
            print(f"FAILED {row.model}: {row.error}")
    return low or not all(row.ok for row in rows)
