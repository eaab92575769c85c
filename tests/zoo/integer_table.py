"""The part of integers as text: a row for each network, then how many conversions ended in which way."""

from __future__ import annotations

from collections import Counter

from tests.zoo.integer_trial import SCHEMES, IntegerRow

HEADER = f"{'family':32} {'model':30} " + " ".join(f"{name:>26}" for name in SCHEMES) + "  ok"


def line(row: IntegerRow) -> str:
    """Outcomes by scheme, with the decibels of the file and of its simulation, and seconds."""
    ways = " ".join(f"{_way(row, scheme):>26}" for scheme in SCHEMES)
    text = f"{row.family[:32]:32} {row.model[:30]:30} {ways}  {'yes' if row.ok else 'NO'}"
    said = [
        f"{scheme}: {row.said.get(scheme, '')}"
        for scheme, outcome in row.outcomes.items()
        if outcome != "written"
    ]
    return "\n      ".join([text, *filter(None, [row.error, row.note, *said])])


def _way(row: IntegerRow, scheme: str) -> str:
    if scheme not in row.outcomes:
        return "-"
    levels = row.decibels.get(scheme)
    noise = f" {levels[0]:.0f}/{levels[1]:.0f}dB" if levels is not None else ""
    return f"{row.outcomes[scheme]}{noise} {row.seconds.get(scheme, 0.0):.0f}s"


def summary(rows: list[IntegerRow], _whole: bool) -> bool:
    """Print totals; True if anything crashed, or a file was refused that its simulation promises."""
    print()
    for scheme in SCHEMES:
        counts = Counter(row.outcomes.get(scheme, "not run") for row in rows)
        print(f"{scheme}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print(f"{len(rows)} networks")
    failed = [row for row in rows if not row.ok]
    for row in failed:
        ways = [f"{name} {way}" for name, way in row.outcomes.items() if way.isupper()]
        print(f"FAILED {row.source}:{row.model}: {row.error or ', '.join(ways)}")
    return bool(failed)
