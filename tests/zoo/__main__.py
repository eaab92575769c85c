"""``python -m tests.zoo``: every member through the compiler, a row each, then totals."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.zoo.integer_trial import SCHEMES
from tests.zoo.models import Member, scan
from tests.zoo.parts import PARTS, USUAL, Part, be_quiet, run_one


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    be_quiet()
    names = [options.part] if options.part else list(USUAL)
    if options.precision != "fp32":
        names = [f"trt-{options.precision}" if name == "trt" else name for name in names]
    if options.scheme:
        names = [f"integers-{options.scheme}" if name == "integers" else name for name in names]
    if options.scan:
        for counts in filter(None, (PARTS[name].counts for name in names)):
            for family, model, norms in scan(counts):
                print(f"    {family} {model}  # {norms}", flush=True)
        return 0
    chosen = {
        name: [member for member in PARTS[name].members() if _wanted(member, options.only)]
        for name in names
    }
    if not any(chosen.values()):
        print(f"no member matches `{options.only}`", file=sys.stderr)
        return 2
    failed, rows = False, []
    for name, found in chosen.items():
        if found:
            done = _run(name, found[: options.limit], options)
            failed |= PARTS[name].summary(done, options.only is None and options.limit is None)
            rows += done
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    return int(failed)


def _run(name: str, found: list[Member], options: argparse.Namespace) -> list[Any]:
    part = PARTS[name]
    known = _read(part, options.cache)
    new = _rows(name, [member for member in found if member.id not in known], options)
    print(part.header, flush=True)
    rows = []
    for member in found:
        row = known.get(member.id)
        if row is None:
            row = next(new)
            _remember(options.cache, row)
        rows.append(row)
        print(part.line(row), flush=True)
        if options.verbose:
            for site, why in row.sites.items():
                print(f"      {site}: {why}", flush=True)
    return rows


def _rows(name: str, found: list[Member], options: argparse.Namespace) -> Iterator[Any]:
    """Rows in the order of the members, from as many processes as asked for."""
    work = [(name, member, options.positive) for member in found]
    if options.jobs == 1:
        yield from map(run_one, work)
        return
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), be_quiet) as pool:
        yield from pool.map(run_one, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument(
        "--part",
        choices=(*USUAL, "sizes", "certificates", "integers"),
        help="BatchNorms, LayerNorms, engines, folders, real sizes, certificates or integers only",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the engines"
    )
    parser.add_argument("--scheme", choices=SCHEMES, help="of integers; all without it")
    parser.add_argument("--only", help="part of a family or model name, or a pattern with * and ?")
    parser.add_argument("--limit", type=int, help="the first N members of each part")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--cache", type=Path, help="JSON lines: rows that passed are not run again")
    parser.add_argument("--positive", action="store_true", help="no BatchNorm with a negative gain")
    parser.add_argument("--verbose", action="store_true", help="name every norm that is left")
    parser.add_argument("--scan", action="store_true", help="list the members that this timm has")
    return parser


def _wanted(member: Member, pattern: str | None) -> bool:
    if pattern is None:
        return True
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return any(fnmatch.fnmatch(text, glob) for text in (member.id, member.family, member.name))


def _read(part: Part, cache: Path | None) -> dict[str, Any]:
    """Rows that passed in an earlier run; a later line replaces an earlier one."""
    if cache is None or not cache.exists():
        return {}
    names = {item.name for item in fields(part.row)}
    sources = {member.source for member in part.members()}
    rows = {}
    for line in cache.read_text().splitlines():
        data: dict[str, Any] = json.loads(line)
        if data["source"] in sources:
            row = part.row(**{name: value for name, value in data.items() if name in names})
            rows[f"{row.source}:{row.model}"] = row
    return {key: row for key, row in rows.items() if row.ok}


def _remember(cache: Path | None, row: Any) -> None:
    if cache is not None:
        with cache.open("a") as file:
            file.write(json.dumps(row.to_dict()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
