"""The part of folders as text: a row for each architecture, then how many ended in which way."""

from __future__ import annotations

from collections import Counter

from tests.zoo.folder_trial import PRESETS, FolderRow

HEADER = (
    f"{'model':20} {'class':38} {'folded':12} {'rmsnorm':12} {'error':>8} {'total':>6}  ok  inputs"
)


def line(row: FolderRow) -> str:
    """Outcomes, the largest relative error of the files, and the inputs that they have."""
    folded, rmsnorm = (row.outcomes.get(preset, "-") for preset in PRESETS)
    text = (
        f"{row.model[:20]:20} {row.family[:38]:38} {folded:12} {rmsnorm:12} {row.worst:8.1e} "
        f"{row.total_seconds:5.0f}s  {'yes' if row.ok else 'NO'}  {row.inputs}"
    )
    return "\n      ".join([text, *filter(None, [row.error, *row.notes])])


def summary(rows: list[FolderRow], _whole: bool) -> bool:
    """Print totals; True if a file is wrong, something broke, or a row is not as expected."""
    print()
    for preset in PRESETS:
        counts = Counter(row.outcomes.get(preset, "not built") for row in rows)
        print(f"{preset}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print(f"{len({row.family for row in rows})} classes, {len(rows)} folders")
    failed = [row for row in rows if not row.ok]
    for row in failed:
        print(f"FAILED {row.model}: {row.outcomes} {row.error}")
    return bool(failed)
