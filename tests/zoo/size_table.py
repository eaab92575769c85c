"""The part of real sizes as text: a row for each network, then how many verdicts ended in which way."""

from __future__ import annotations

from collections import Counter

from tests.zoo.size_trial import PRESETS, SizeRow

HEADER = (
    f"{'family':25} {'model':30} {'side':>4} {'params':>7} {'GMACs':>6} {'baked':10} {'folded':10} {'rmsnorm':10} "
    f"{'used':>5} {'total':>6}  ok"
)


def line(row: SizeRow) -> str:
    """Outcomes by preset, and the largest share of its tolerance that any check used."""
    ways = " ".join(f"{row.outcomes.get(name, '-'):10}" for name in PRESETS)
    used = max((share for checks in row.used.values() for share in checks.values()), default=0.0)
    text = (
        f"{row.family[:25]:25} {row.model[:30]:30} {row.side:4} {row.parameters / 1e6:6.1f}M "
        f"{row.macs / 1e9:6.2f} {ways} {used:5.2f} {row.total_seconds:5.0f}s  {'yes' if row.ok else 'NO'}"
    )
    left_out = row.left_out and f"left out: {row.left_out}"
    said = [f"{name}: {note}" for name, notes in row.notes.items() for note in notes]
    return "\n      ".join([text, *filter(None, [left_out, row.error, row.note, *said])])


def summary(rows: list[SizeRow], _whole: bool) -> bool:
    """Print totals; True if a verdict was a false alarm, or a network was not run."""
    print()
    run = [row for row in rows if not row.left_out]
    for preset in PRESETS:
        counts = Counter(row.outcomes.get(preset, "not run") for row in run)
        print(f"{preset}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print(
        f"{len(run)} networks, {len({row.family for row in run})} families; {len(rows) - len(run)} left out"
    )
    failed = [row for row in rows if not row.ok]
    for row in failed:
        print(f"FAILED {row.model}: {row.error}")
    return bool(failed)
