"""What an earlier run of the same name wrote in a folder of its own, and this one did not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from normfold.report.verdict import Artefact
from normfold.targets.order import sha256


def remove_stale(folder: Path, name: str, made: Sequence[Artefact]) -> None:
    """Remove folders that the earlier report lists in a format that is written now, if their file is still the one
    of that report: beside the new files they would pass for these."""
    kept = {Path(item.path).parent.name for item in made}
    formats = {item.format for item in made}
    for item in _earlier(folder / f"{name}.report.json"):
        path = Path(str(item.get("path")))
        own = folder / path.parent.name
        file = own / path.name
        if (
            own.name in kept
            or not own.name.startswith(f"{name}-")
            or item.get("format") not in formats
        ):
            continue
        if file.is_file() and sha256(file) == item.get("sha256"):
            for part in (file.name, *item.get("files", ())):
                (own / Path(str(part)).name).unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                own.rmdir()


def _earlier(report: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    listed = content.get("artefacts") if isinstance(content, dict) else None
    yield from (item for item in listed or () if isinstance(item, dict))
