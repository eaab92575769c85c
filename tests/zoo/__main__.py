"""``python -m tests.zoo``: every member through the compiler, a row each, then totals."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from tests.zoo import bn_table, ln_table
from tests.zoo.ln_models import is_layer_norm, ln_members
from tests.zoo.ln_trial import NormRow, ln_trial
from tests.zoo.models import Member, is_batch_norm, members, scan
from tests.zoo.trial import Row, trial


@dataclass(frozen=True)
class Part:
    """One half of the zoo: what is in it, how a member is run, how rows are shown."""

    members: Callable[[], list[Member]]
    trial: Callable[[Member, bool], Any]
    row: type[Row] | type[NormRow]
    header: str
    line: Callable[[Any], str]
    summary: Callable[[list[Any], bool], bool]
    counts: Callable[[nn.Module], bool]


PARTS = {
    "bn": Part(
        members, trial, Row, bn_table.HEADER, bn_table.line, bn_table.summary, is_batch_norm
    ),
    "ln": Part(
        ln_members,
        lambda member, _: ln_trial(member),
        NormRow,
        ln_table.HEADER,
        ln_table.line,
        ln_table.summary,
        is_layer_norm,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what models and torch.export say about each other
    parts = [PARTS[options.part]] if options.part else list(PARTS.values())
    if options.scan:
        for part in parts:
            for family, name, norms in scan(part.counts):
                print(f"    {family} {name}  # {norms}", flush=True)
        return 0
    chosen = [
        (part, [member for member in part.members() if _wanted(member, options.only)])
        for part in parts
    ]
    if not any(found for _, found in chosen):
        print(f"no member matches `{options.only}`", file=sys.stderr)
        return 2
    failed, rows = False, []
    for part, found in chosen:
        if found:
            done = _run(part, found[: options.limit], options)
            failed |= part.summary(done, options.only is None and options.limit is None)
            rows += done
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    return int(failed)


def _run(part: Part, found: list[Member], options: argparse.Namespace) -> list[Any]:
    known = _read(part, options.cache)
    print(part.header, flush=True)
    rows = []
    for member in found:
        row = known.get(member.id)
        if row is None:
            row = part.trial(member, options.positive)
            _remember(options.cache, row)
        rows.append(row)
        print(part.line(row), flush=True)
        if options.verbose:
            for site, why in row.sites.items():
                print(f"      {site}: {why}", flush=True)
        gc.collect()
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), help="BatchNorms or LayerNorms only")
    parser.add_argument("--only", help="part of a family or model name, or a pattern with * and ?")
    parser.add_argument("--limit", type=int, help="the first N members of each part")
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
