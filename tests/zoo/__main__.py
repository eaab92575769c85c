"""``python -m tests.zoo``: every member through the compiler, a row each, then totals."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import math
import os
import sys
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from normfold.rewrite.reasons import by_code
from tests.zoo.models import Member, members, scan
from tests.zoo.trial import Row, trial

PROTOTYPE = 2771 / 2976  # BatchNorms gone in timm's families, as the research prototype had them
HEADER = (
    f"{'family':25} {'model':30} {'params':>7} {'BN':>4} {'gone':>4} {'left':16} {'capture':>7} "
    f"{'passes':>7} {'total':>6} {'float64':>8} {'e1/e0':>6}  ok"
)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what models and torch.export say about each other
    if options.scan:
        for family, name, norms in scan():
            print(f"    {family} {name}  # {norms}", flush=True)
        return 0
    chosen = [member for member in members() if _wanted(member, options.only)][: options.limit]
    if not chosen:
        print(f"no member matches `{options.only}`", file=sys.stderr)
        return 2
    known = _read(options.cache)
    print(HEADER, flush=True)
    rows = []
    for member in chosen:
        row = known.get(member.id)
        if row is None:
            row = trial(member, options.positive)
            _remember(options.cache, row)
        rows.append(row)
        print(_line(row), flush=True)
        if options.verbose:
            for site, why in row.sites.items():
                print(f"      {site}: {why}", flush=True)
        gc.collect()
    whole = options.only is None and options.limit is None
    failed = _summary(rows, whole)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--only", help="part of a family or model name, or a pattern with * and ?")
    parser.add_argument("--limit", type=int, help="the first N members")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--cache", type=Path, help="JSON lines: rows that passed are not run again")
    parser.add_argument("--positive", action="store_true", help="no norm with a negative gain")
    parser.add_argument("--verbose", action="store_true", help="name every BatchNorm that is left")
    parser.add_argument("--scan", action="store_true", help="list the members that this timm has")
    return parser


def _wanted(member: Member, pattern: str | None) -> bool:
    if pattern is None:
        return True
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return any(fnmatch.fnmatch(text, glob) for text in (member.id, member.family, member.name))


def _read(cache: Path | None) -> dict[str, Row]:
    """Rows that passed in an earlier run; a later line replaces an earlier one."""
    if cache is None or not cache.exists():
        return {}
    names = {item.name for item in fields(Row)}
    rows = {}
    for line in cache.read_text().splitlines():
        data: dict[str, Any] = json.loads(line)
        row = Row(**{name: value for name, value in data.items() if name in names})
        rows[f"{row.source}:{row.model}"] = row
    return {key: row for key, row in rows.items() if row.ok}


def _remember(cache: Path | None, row: Row) -> None:
    if cache is not None:
        with cache.open("a") as file:
            file.write(json.dumps(row.to_dict()) + "\n")


def _line(row: Row) -> str:
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


def _summary(rows: list[Row], whole: bool) -> bool:
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


if __name__ == "__main__":
    sys.exit(main())
