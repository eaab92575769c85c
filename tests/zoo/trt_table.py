"""The engine part as text: a row for each network, then what was built and why the rest was not."""

from __future__ import annotations

import math
from collections import Counter

from tests.zoo.trt_trial import EngineRow

NEEDED = 0.95  # of timm's families that export to ONNX
HEADER = (
    f"{'family':25} {'model':30} {'preset':8} {'params':>7} {'ONNX':>5} {'layers':>6} {'capture':>7} "
    f"{'passes':>7} {'export':>7} {'build':>7} {'engine':>9} {'islands':>7} {'error':>8}  built"
)


def line(row: EngineRow) -> str:
    """ONNX nodes, layers of the typed network, seconds, size; in half precision its islands and its error."""
    half = f"{row.half:8.1e}" if math.isfinite(row.half) else f"{'':8}"
    text = (
        f"{row.family[:25]:25} {row.model[:30]:30} {row.preset:8} {row.parameters / 1e6:6.1f}M {row.nodes:5} "
        f"{row.layers:6} {row.capture_seconds:6.1f}s {row.pass_seconds:6.1f}s {row.export_seconds:6.1f}s "
        f"{row.build_seconds:6.1f}s {row.engine_bytes / 1e6:6.1f} MB {len(row.sites):7} {half}  "
        f"{'yes' if row.built else 'NO'}"
    )
    return "\n      ".join([text, *filter(None, [row.error, row.note])])


def summary(rows: list[EngineRow], whole: bool) -> bool:
    """Print totals; True if too few of timm's families became engines, or an error is over its budget."""
    low = False
    print()
    for source in dict.fromkeys(row.source for row in rows):
        group = [row for row in rows if row.source == source]
        exported = [row for row in group if row.exported]
        built = sum(row.built for row in group)
        print(f"{source}: {built} built, {len(exported)} exported to ONNX, {len(group)} in all")
        if source.startswith("timm") and whole:
            needed = math.ceil(NEEDED * len(exported))
            low |= built < needed
            print(
                f"  needed: {needed}, 95 % of those exported{': TOO FEW' if built < needed else ''}"
            )
    reasons = Counter(row.error.split(" | ")[0] for row in rows if not row.ok)
    for reason, count in reasons.most_common():
        print(f"  {count} x {reason}")
    over = [row for row in rows if row.built and not row.ok]
    halves = sorted((row for row in rows if math.isfinite(row.half)), key=lambda row: -row.half)
    if halves:
        shown = ", ".join(f"{row.model} {row.half:.1e}" for row in halves[:5])
        print(f"largest errors: {shown}; median {halves[len(halves) // 2].half:.1e}")
    fixed = [row.model for row in rows if row.note]
    print(f"sizes that are fixed: {', '.join(fixed) or 'none'}")
    for row in rows:
        if not row.ok:
            print(f"FAILED {row.model}: {row.error}")
    return low or bool(over)
