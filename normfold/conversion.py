"""A job on one page: load, capture, steps, then per target write and judge, publish, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.files import publish, staging
from normfold.ir import Graph
from normfold.job import Cast, Job, Quantize, Recalibrate, Rewrite, Train, confinement
from normfold.progress import Listener, silent
from normfold.report import Report
from normfold.report.events import Recorder
from normfold.report.machine import peak_memory_mb, versions
from normfold.steps.cast import cast
from normfold.steps.deliver import deliver
from normfold.steps.open import begin
from normfold.steps.prepare import prepare, require
from normfold.steps.quantize import quantize
from normfold.steps.recalibrate import recalibrate
from normfold.steps.rewrite import rewrite
from normfold.steps.train import train

STEPS: dict[type, Any] = {
    Recalibrate: recalibrate,
    Rewrite: rewrite,
    Train: train,
    Cast: cast,
    Quantize: quantize,
}


@dataclass(frozen=True)
class Result:
    """What a job made.

    Attributes:
        graph: of the first file that was asked for: in its types and on its grids. Without files, the network
            after the last step, on the grids of the target if the job quantises.
        report: everything that there is to say.
        artifacts: the files that were published; only the report when a verdict fails.
    """

    graph: Graph
    report: Report
    artifacts: list[Path]

    @property
    def ok(self) -> bool:
        """True if every verdict passed and the policy is met; otherwise only the report was written."""
        return self.report.ok


def execute(job: Job, say: Listener = silent) -> Result:
    """Do a job.

    Returns:
        The result. When a verdict fails or a requirement is not met, ``result.ok`` is False, the report is
        written, and files of an earlier run stay as they were.

    Raises:
        LoadError, CaptureError, UsageError, ExportError, PassError, EnvironmentMissing: each with what, where,
            found and a hint; nothing is published then.
    """
    start = time.perf_counter()
    gave_up = str(confinement.state())
    record = Recorder(Report(job=job.to_toml(), versions=versions(), confinement=gave_up))
    prepared = prepare(job)
    work = begin(job, record, say)
    graph = work.captured
    for step in job.steps:
        if record.ok:
            graph = STEPS[type(step)](step, graph, work)
        if work.rank:  # of torchrun: the first process goes on and writes
            return Result(graph, record.report(), [])
    require(prepared, record, of_files=False)
    files: list[Path] = []
    if record.ok:
        graph, files = deliver(graph, work, prepared)
    report = record.report(seconds=time.perf_counter() - start, peak_memory_mb=peak_memory_mb())
    if job.export.export:
        with staging(job.export.output) as folder:
            (folder / f"{prepared.name}.report.json").write_text(report.to_json() + "\n")
            publish(folder, job.export.output)
    return Result(graph, report, files)
