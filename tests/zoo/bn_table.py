"""The BatchNorm part as text: a row for each network, then totals."""

from __future__ import annotations

import math
from collections import Counter

from normfold.report.reasons import by_code
from tests.zoo.trial import Row

PROTOTYPE = 2771 / 2976  # BatchNorms gone in timm's families, as the research prototype had them
HEADER = (
    f"{'family':25} {'model':30} {'params':>7} {'BN':>4} {'gone':>4} {'left':16} {'capture':>7} "
    f"{'passes':>7} {'total':>6} {'float64':>8} {'e1/e0':>6}  ok"
)


def line(row: Row) -> str:
    left = " ".join(f"{code}:{count}" for code, count in sorted(row.left.items()))
    text = (
        f"{row.family[:25]:25} {row.model[:30]:30} {row.parameters / 1e6:6.1f}M {row.norms:4} {row.gone:4} "
        f"{left:16} {row.capture_seconds:6.1f}s {row.pass_seconds:6.1f}s {row.total_seconds:5.0f}s "
        f"{row.algebra:8.1e} {row.ratio:6.2f}  {'yes' if row.ok else 'NO'}"
    )
    borders = " and ".join(f"{count} {name}s" for name, count in row.borders.items())
    borders = borders and f"at zero padding: {borders}"
    remarks = [remark for remark in (row.error, row.note, borders) if remark]
    return "\n      ".join([text, *remarks])


def summary(rows: list[Row], whole: bool) -> bool:
    """Print totals; True if a member failed, or too many of timm's BatchNorms are left."""
    failed = [row for row in rows if not row.ok]
    low = False
    print()
    for source in dict.fromkeys(row.source for row in rows):
        group = [row for row in rows if row.source == source]
        norms, gone = sum(row.norms for row in group), sum(row.gone for row in group)
        done = sum(row.ok for row in group)
        clean = sum(row.gone == row.norms for row in group)
        print(
            f"{source}: {done} of {len(group)} captured and verified; "
            f"{gone} of {norms} BatchNorms gone; none left in {clean}"
        )
        if source == "timm" and whole:
            needed = math.ceil(PROTOTYPE * norms)
            low = gone < needed
            print(f"  needed: {needed} (the prototype's 2771 of 2976){': TOO FEW' if low else ''}")
    _left(rows)
    slow = sorted(rows, key=lambda row: -row.pass_seconds)[:5]
    print("slowest passes: " + ", ".join(f"{row.model} {row.pass_seconds:.1f} s" for row in slow))
    worst = max((row.algebra for row in rows if math.isfinite(row.algebra)), default=math.nan)
    spread = min((row.spread for row in rows if row.error == ""), default=math.nan)
    print(f"largest float64 error: {worst:.1e}; least difference of two outputs: {spread:.1e}")
    for row in failed:
        print(f"FAILED {row.model}: {row.error}")
    return bool(failed) or low


def _left(rows: list[Row]) -> None:
    codes: Counter[str] = Counter()
    for row in rows:
        codes.update(row.left)
    print(f"\n{sum(codes.values())} BatchNorms left:")
    for code, count in codes.most_common():
        reason = by_code(code)
        where = ", ".join(f"{row.model} {row.left[code]}" for row in rows if code in row.left)
        print(f"  {code} {reason.slug if reason else ''}: {count}  ({where})")
    for way in ("map", "pad"):
        where = ", ".join(f"{row.model} {row.borders[way]}" for row in rows if way in row.borders)
        print(f"zero padding met by a {way}: {where or 'nowhere'}")
    print()
