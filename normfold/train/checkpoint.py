"""Where an interrupted distillation goes on: one file, replaced whole."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from normfold.errors import UsageError, boundary
from normfold.files import atomic
from normfold.load import pickled
from normfold.load.trust import Trust
from normfold.report.training import Evaluation, Rollback, TrainingReport

_FORMAT = 1


def save_checkpoint(path: Path, key: dict[str, Any], saved: dict[str, Any]) -> None:
    """Write what a run needs to go on; ``key`` says which run it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": _FORMAT, "key": _plain(key), **saved, "report": asdict(saved["report"])}
    with atomic(path) as (file,):
        torch.save(data, file)


def load_checkpoint(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, or None where there is no file.

    Raises:
        LoadError: the file cannot be read. UsageError: it is of a run with other options, data or weights.
    """
    if not path.exists():
        return None
    with boundary(
        "the checkpoint cannot be read", str(path), "delete it to start from the beginning"
    ):
        data = pickled.read(path, Trust())
        found, report = data.pop("key"), data.pop("report")
        version = data.pop("format")
        wanted = _plain(key)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing or version != _FORMAT:
        raise UsageError(
            "the checkpoint is of another run",
            where=str(path),
            found=f"other {', '.join(differing) or 'format'}",
            hint="delete it, or give the options, the model and the data that it was made with",
        )
    with boundary(
        "the checkpoint cannot be read", str(path), "delete it to start from the beginning"
    ):
        data["report"] = _report(report)
    return dict(data)


def _plain(key: dict[str, Any]) -> dict[str, Any]:
    """The key as text, which a safe load can read."""
    return {name: repr(value) for name, value in key.items()}


def _report(data: dict[str, Any]) -> TrainingReport:
    data["evaluations"] = [Evaluation(**item) for item in data["evaluations"]]
    data["rollbacks"] = [Rollback(**item) for item in data["rollbacks"]]
    names = {field.name for field in fields(TrainingReport)}
    return TrainingReport(**{name: value for name, value in data.items() if name in names})
