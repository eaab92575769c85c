"""The LayerNorm part as text: a row for each network, then totals against the floors."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from normfold.report.reasons import by_code
from tests.zoo.ln_trial import NormRow

# What the research prototype reached on timm's families (feasibility.md): LayerNorms, converted, ops
PROTOTYPE_NORMS, PROTOTYPE_CONVERTED, PROTOTYPE_OPS = 1234, 778, 58
HEADER = (
    f"{'family':25} {'model':30} {'params':>7} {'LN':>4} {'RMS':>4} {'ops':>3} {'can':>4} {'ops':>3} "
    f"{'declined':24} "
    f"{'capture':>7} {'passes':>7} {'total':>6} {'float64':>8} {'naive':>8} {'e1/e0':>6}  ok"
)


def line(row: NormRow) -> str:
    """LayerNorms, how many became RMSNorms, explicit centring ops; both again where bias additions are free;
    declined by reason, seconds, errors.
    """
    declined = " ".join(f"{code}:{count}" for code, count in sorted(row.declined.items()))
    text = (
        f"{row.family[:25]:25} {row.model[:30]:30} {row.parameters / 1e6:6.1f}M {row.norms:4} "
        f"{row.converted:4} {row.ops:3} {row.convertible:4} {row.convertible_ops:3} "
        f"{declined:24} {row.capture_seconds:6.1f}s "
        f"{row.pass_seconds:6.1f}s {row.total_seconds:5.0f}s {row.algebra:8.1e} {row.naive:8.1e} "
        f"{row.ratio:6.2f}  {'yes' if row.ok else 'NO'}"
    )
    return "\n      ".join([text, *filter(None, [row.error, row.note])])


def summary(rows: list[NormRow], whole: bool) -> bool:
    """Print totals; True if a network failed, too few of timm's norms converted, or it took too long."""
    failed = [row for row in rows if not row.ok]
    low = False
    print()
    for source in dict.fromkeys(row.source for row in rows):
        group = [row for row in rows if row.source == source]
        low |= _totals(source, group, whole)
    _declined(rows)
    low |= _speed(rows, whole)
    errors = [row.algebra for row in rows if math.isfinite(row.algebra)]
    naive = [row.naive for row in rows if row.convertible and math.isfinite(row.naive)]
    print(
        f"largest float64 error: {max(errors, default=math.nan):.1e}; "
        f"least error without centring: {min(naive, default=math.nan):.1e}"
    )
    for row in failed:
        print(f"FAILED {row.model}: {row.error}")
    return bool(failed) or low


def _totals(source: str, rows: list[NormRow], whole: bool) -> bool:
    """Print one source's totals; True if timm's are below the prototype's."""
    norms, converted = sum(row.norms for row in rows), sum(row.converted for row in rows)
    ops = sum(row.ops for row in rows)
    print(
        f"{source}: {sum(row.ok for row in rows)} of {len(rows)} captured and verified; {converted} of "
        f"{norms} LayerNorms became RMSNorms, with {ops} centring ops; all in "
        f"{sum(row.converted == row.norms for row in rows)}"
    )
    convertible, more = (
        sum(row.convertible for row in rows),
        sum(row.convertible_ops for row in rows),
    )
    print(f"  {convertible} with {more} ops where additions for left-over biases are free")
    if source != "timm-ln" or not whole:
        return False
    few, dear = converted < PROTOTYPE_CONVERTED, ops > PROTOTYPE_OPS
    print(
        f"  needed: {PROTOTYPE_CONVERTED} with at most {PROTOTYPE_OPS} ops (the prototype's, of "
        f"{PROTOTYPE_NORMS}){': TOO FEW' if few else ''}{': TOO MANY OPS' if dear else ''}"
    )
    return few or dear


def _declined(rows: list[NormRow]) -> None:
    codes: Counter[str] = Counter()
    for row in rows:
        codes.update(row.declined)
    print(f"\n{sum(codes.values())} LayerNorms left:")
    for code, count in codes.most_common():
        reason = by_code(code)
        where = ", ".join(
            f"{row.model} {row.declined[code]}" for row in rows if code in row.declined
        )
        print(f"  {code} {reason.slug if reason else ''}: {count}  ({where})")
    print()


def _speed(rows: list[NormRow], whole: bool) -> bool:
    """Print what the passes cost beside torch.export; True if that is more, at the median."""
    ratios = [row.pass_seconds / row.capture_seconds for row in rows if row.pass_seconds]
    middle = median(ratios) if ratios else math.nan
    streams = [row.stream_seconds / row.capture_seconds for row in rows if row.pass_seconds]
    alone = median(streams) if streams else math.nan
    slow = middle > 1
    print(
        f"all passes before bake take {middle:.2f} of torch.export's time at the median, center-stream "
        f"alone {alone:.2f}{': TOO SLOW' if slow else ''}"
    )
    worst = sorted(rows, key=lambda row: -row.pass_seconds)[:5]
    print("slowest passes: " + ", ".join(f"{row.model} {row.pass_seconds:.1f} s" for row in worst))
    return slow and whole
