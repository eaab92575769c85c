"""What can be refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from normfold.domains.placed import device_of
from normfold.errors import UsageError
from normfold.files import require_writable
from normfold.ir import Graph
from normfold.job import EngineOptions, Job
from normfold.judge.rules import budgets
from normfold.report.events import Recorder, Unmet
from normfold.report.policy import Requirement
from normfold.rewrite import Pass
from normfold.steps.quantize import kept_by
from normfold.steps.rewrite import passes_of
from normfold.target import target
from normfold.targets.tensorrt.profiles import parse_dynamic
from normfold.targets.tensorrt.write import builder

_WRITTEN = (".onnx", ".data", ".xml", ".bin", ".engine", ".pt2", ".pt", ".json", ".safetensors")
_SUFFIXES = (".tar", ".pt", ".pth", ".pt2", ".safetensors", ".bin", ".ckpt", ".pkl", ".npz")


@dataclass(frozen=True)
class Prepared:
    """What a job's texts mean.

    Attributes:
        requirements: of the policy.
        ranges: sizes of dynamic axes that an engine is built for.
        engine: how one is built, with the builder that the target names.
        name: of the files.
    """

    requirements: list[Requirement]
    ranges: dict[str, Any]
    engine: EngineOptions
    name: str

    @property
    def times(self) -> bool:
        """True where a requirement is on the time of a file."""
        return any(item.times for item in self.requirements)


def prepare(job: Job) -> Prepared:
    """Read the texts of a job.

    Raises:
        UsageError: a wrong pipeline, requirement, budget or axis, options that the builder of engines has not, a
            folder that cannot be written to. EnvironmentMissing: a GPU is asked for, and torch sees none.
    """
    _require_model(job.source.model)
    passes: list[Pass] = []
    if job.rewrite is not None:
        passes = passes_of(job.rewrite.pipeline, job.rewrite.untie)
    if job.policy.verify != "off":
        budgets(passes, job.policy.max_error)  # refuses one that is missing, or that means nothing
    if job.quantize is not None and job.quantize.exact:
        passes += kept_by(job.quantize)
    names = [item.name for item in passes]
    requirements = [Requirement.parse(text, names) for text in job.policy.require]
    _require_files(requirements, job)
    _, ranges = parse_dynamic(job.source.dynamic)
    engine = engine_of(job)
    if "trt" in job.export.export:
        engine = _for_kernels(engine, job)
    elif ranges:
        raise UsageError(
            "sizes of dynamic axes are what an engine is built for, and none is built",
            found=", ".join(
                f"`{n}:{axis}={r}`" for n, asked in ranges.items() for axis, r in asked.items()
            ),
            hint="name the axis only (`--dynamic NAME:AXIS`), or build an engine with `--export trt`",
        )
    if job.quantize is not None:
        device_of(job.quantize.device)
        _require_folder(job.quantize.save_synthetic)
    if job.export.export:
        require_writable(job.export.output)
    name = job.export.name or name_of(job.source.model)
    if job.source.part is not None and job.export.name is None:
        name = f"{name}.{job.source.part}"
    if job.export.export:
        _require_names(job.export.output, name)
    return Prepared(requirements, ranges, engine, name)


def _require_names(folder: Path, stem: str) -> None:
    """Refuse folders that have the names of files, before the work that these would hold."""
    for path in sorted(folder.glob(f"{escape(stem)}.*")):
        if path.suffix in _WRITTEN and path.is_dir():
            raise UsageError(
                "a file cannot be written: a folder has its name",
                where=str(path),
                hint="remove the folder, or give `--name` or another `-o`",
            )


def _require_folder(file: Path | None) -> None:
    """Refuse a file whose folder is not there, before the work that it would hold."""
    if file is not None and not file.parent.is_dir():
        raise UsageError("the folder to write to does not exist", where=str(file.parent))


def require(prepared: Prepared, record: Recorder, *, of_files: bool) -> None:
    """Say which requirements are not met: those on files, or those on the network alone."""
    for requirement in prepared.requirements:
        if requirement.of_file == of_files and (text := requirement.check(record.report())):
            record.emit(Unmet(text))


def _require_files(requirements: Sequence[Requirement], job: Job) -> None:
    """Refuse a requirement on a file where no such file is written."""
    formats = set(job.export.export)
    for item in requirements:
        if item.of_file and not (formats if item.name == "size" else formats & {"onnx"}):
            raise UsageError(
                f"`{item}` is about an ONNX file, and none is written",
                found=f"--export {', '.join(sorted(formats)) or 'none'}",
            )


def _require_model(model: Any) -> None:
    if not isinstance(model, (str, os.PathLike, nn.Module, Graph, ExportedProgram)):
        raise UsageError(
            f"a model cannot be a `{type(model).__name__}`",
            hint="give a path, a name such as `timm:resnet18`, a module, or a captured graph",
        )


def engine_of(job: Job) -> EngineOptions:
    """The options of engines, with the builder of the target that was named."""
    named = [row.builder for row in map(target, job.export.target) if row.builder]
    if job.engine.backend != "auto" or not named:
        return job.engine
    return replace(job.engine, backend=named[0])  # type: ignore[arg-type]


def _for_kernels(engine: EngineOptions, job: Job) -> EngineOptions:
    """The options for GPUs that have the kernels for a job's scheme, where its builder is here."""
    backend, _ = builder(engine)
    if backend is None or job.quantize is None:
        return engine
    rows = (backend.target.grids, backend.target.float_grids)
    least = [row.capability for row in rows if row and job.quantize.scheme in row.schemes]
    return backend.restricted(engine, max(least)) if any(least) else engine


def name_of(model: Any) -> str:
    """The stem of the files: the module's class, or what stands last in the model's path, without its suffix."""
    if isinstance(model, Graph):
        model = model.original if model.original is not None else model.module
    if isinstance(model, nn.Module):
        return type(model).__name__.lower()
    text = str(model)
    if Path(text).exists():
        tail = Path(os.path.abspath(text)).name  # the name of a link, not of what it points to
    else:
        tail = text.split("(")[0].rstrip("/").rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        tail = tail.removesuffix(suffix)
    allowed = (letter if letter.isalnum() or letter in "-_." else "_" for letter in tail)
    return "".join(allowed).strip("_") or "model"
