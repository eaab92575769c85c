"""``python -m tests.mutants [--networks vit gpt] [--limit 50] [--seeds 20] [--seed 0] [--json FILE] [--jobs 2]``.

Prints, per line of the verdict, how many plainly wrong mutants it caught; ends with 1 below `LEAST` of them, or
after a false alarm. The names of all that were missed follow.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
LEAST = 0.995


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--networks", nargs="+")
    parser.add_argument(
        "--limit", type=int, default=40, help="mutants of a network and level; %(default)s"
    )
    parser.add_argument(
        "--seeds", type=int, default=20, help="of each untouched network; %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="every mutant, in a file")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    from tests.mutants.networks import NETWORKS

    work = [(name, asked.limit, asked.seeds, asked.seed) for name in asked.networks or NETWORKS]
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for future in as_completed([pool.submit(_alone, item) for item in work]):
            found.append(part := future.result())
            print(_told(part), flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return summary(found)


def _alone(work: tuple[str, int, int, int]) -> dict[str, Any]:
    """A network in a process of its own: a runtime may crash on a damaged file."""
    from tests.mutants.judge import one

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(one, work).result()
        except BrokenProcessPool as error:
            nothing: dict[str, Any] = {"rows": [], "alarms": [], "verdicts": 0, "seconds": 0.0}
            return {"network": work[0], **nothing, "error": str(error)}


def _told(part: dict[str, Any]) -> str:
    rows = part["rows"]
    caught, plain, _ = counts(rows, None)
    text = (
        f"{part['network']:16} {len(rows):4} mutants, {sum(bool(row['refused']) for row in rows):3} refused, "
        f"caught {caught}/{plain}, {len(part['alarms'])} alarms of {part['verdicts']}, {part['seconds']:.0f} s"
    )
    return f"{text}\n{part['error']}" if part["error"] else text


def counts(rows: Iterable[dict[str, Any]], line: str | None) -> tuple[int, int, int]:
    """Of a line, or of all: plainly wrong and caught, plainly wrong, not plainly wrong."""
    caught = plain = other = 0
    for row in rows:
        for name, wrong in (row["plain"] or {}).items():
            if line in (None, name):
                plain += wrong
                caught += wrong and row["caught"][name]
                other += not wrong
    return caught, plain, other


def summary(found: Sequence[dict[str, Any]]) -> int:
    """Print the table and what was missed; the exit code."""
    rows = [row for part in found for row in part["rows"]]
    from tests.mutants.judge import PARTLY

    lines = list(dict.fromkeys(name for row in rows for name in row["plain"] or ()))
    print(f"\n{'line':18} {'judged':>7} {'plain':>6} {'caught':>7} {'share':>8}  missed")
    worst = 1.0
    for line in lines:
        caught, plain, other = counts(rows, line)
        share = caught / plain if plain else 1.0
        if line != PARTLY:  # the report says that it is not covered
            worst = min(worst, share)
        print(f"{line:18} {plain + other:7} {plain:6} {caught:7} {share:8.2%}  {plain - caught}")
    together = [row for row in rows if row["level"] == "un-baked" and _is_wrong(row)]
    held = sum(any(row["caught"].values()) for row in together)
    print(f"{'un-baked, either':18} {'':7} {len(together):6} {held:7}")
    unseen = [row for row in rows if is_unseen(row)]
    held = sum(row["caught"]["certificate"] for row in unseen)
    print(f"of what float32 does not see: {held} of {len(unseen)} caught by the certificate")
    alarms = [alarm for part in found for alarm in part["alarms"]]
    verdicts = sum(part["verdicts"] for part in found)
    refused = sum(bool(row["refused"]) for row in rows)
    equal = [row for row in rows if _differs_from_nothing(row)]
    print(
        f"{len(rows)} mutants, {refused} do not run; {len(alarms)} false alarms of {verdicts} verdicts"
    )
    print(
        f"{len(equal)} differ by no more than rounding on fresh inputs, and the certificate fails them"
    )
    for row in rows:
        for line, wrong in (row["plain"] or {}).items():
            if wrong and not row["caught"][line]:
                state = f" ({row['state']})" if line.startswith("certificate") else ""
                print(
                    f"MISSED by {line}{state}: {row['network']}: {row['fault']}: {row['error']:.2e}"
                )
    for row in equal:
        print(f"SAME, and failed: {row['network']}: {row['fault']}: {row['error']:.2e}")
    for alarm in alarms:
        print(f"ALARM {alarm}")
    broken = [part["network"] for part in found if part["error"]]
    if broken:
        print("not run: " + ", ".join(broken))
    return int(worst < LEAST or bool(alarms) or bool(broken))


def _is_wrong(row: dict[str, Any]) -> bool:
    """True if a fault is one in float64."""
    return any(wrong for line, wrong in (row["plain"] or {}).items() if line != "algebra")


def is_unseen(row: dict[str, Any]) -> bool:
    """True if a fault is one in float64, and float32 does not see it."""
    from tests.mutants.judge import UNSEEN

    return (
        row["level"] == "un-baked"
        and bool((row["plain"] or {}).get("certificate"))
        and row["error"] < UNSEEN
    )


def _differs_from_nothing(row: dict[str, Any]) -> bool:
    judged = row["level"] == "un-baked" and row["plain"] is not None
    return judged and row["plain"].get("certificate") is False and row["caught"]["certificate"]


if __name__ == "__main__":
    sys.exit(main())
