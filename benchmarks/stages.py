"""normfold's own time by stage: timers around functions, each without the time of those inside it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Verify = Literal["final", "each", "off"]

# stage, the module that defines a function, its name there
POINTS = (
    ("load", "normfold.load.api", "load"),
    ("capture: torch.export", "torch.export", "export"),
    ("capture: functional", "normfold.ir.functional", "functionalise"),
    ("capture: module", "torch.export.exported_program", "ExportedProgram.module"),
    ("capture: rest", "normfold.ir.capture", "capture"),
    ("passes: copy", "normfold.ir.graph", "Graph.copy"),
    ("passes: deduplicate", "normfold.ir.expressions", "deduplicate"),
    ("passes: recompile", "normfold.ir.graph", "Graph.recompile"),
    ("passes: run", "normfold.rewrite.base", "Pass.run"),
    ("bake", "normfold.rewrite.baker", "bake"),
    ("report", "normfold.report.sites", "site_statuses"),
    ("verify: inputs", "normfold.judge.inputs", "cases"),
    ("verify: float64 forward", "normfold.judge.verifier", "run_float64"),
    ("verify: forward, own dtype", "normfold.judge.verifier", "run"),
    ("verify: compare", "normfold.judge.verifier", "Verifier._judge"),
    ("onnxruntime: open", "normfold.targets.runtime", "RuntimeSession.__init__"),
    ("onnxruntime: run", "normfold.targets.runtime", "RuntimeSession.run"),
    ("export: program", "normfold.targets.program", "exported_program"),
    ("export: torch.onnx", "normfold.targets.onnx", "_run_exporter"),
    ("export: clean", "normfold.targets.cleanup", "clean"),
    ("export: label", "normfold.targets.cleanup", "label"),
    ("export: message", "normfold.targets.write", "Message.__init__"),
    ("export: write", "normfold.targets.write", "Message.write_single"),
    ("export: census", "normfold.targets.census", "census"),
    ("export: rest", "normfold.targets.onnx", "export_onnx"),
)
IMPORTS = (
    ("torch", lambda: importlib.import_module("torch")),
    ("the exporter", lambda: importlib.import_module("torch.onnx._internal.exporter._core")),
    ("onnxruntime", lambda: importlib.import_module("onnxruntime")),
    ("timm", lambda: importlib.import_module("benchmarks.models").import_timm()),
)


@dataclass
class Timer:
    """Seconds of one stage without those of stages inside it, and MB by which it raised the process's peak."""

    wall: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    calls: int = 0


def _now() -> tuple[float, float, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.perf_counter(), time.process_time(), peak


class Stages:
    """Timers by name; a running stage stops while another runs inside it."""

    def __init__(self) -> None:
        self.timers: dict[str, Timer] = {}
        self._running: list[str] = ["rest"]
        self._mark = _now()

    def switch(self) -> None:
        """Book the time since the last switch to the stage that was running."""
        now = _now()
        timer = self.timers.setdefault(self._running[-1], Timer())
        timer.wall += now[0] - self._mark[0]
        timer.cpu += now[1] - self._mark[1]
        timer.memory += now[2] - self._mark[2]
        self._mark = now

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked to ``stage``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._running.append(stage)
            self.timers.setdefault(stage, Timer()).calls += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self._running.pop()

        return timed

    @contextlib.contextmanager
    def installed(self) -> Iterator[list[str]]:
        """Timers around all `POINTS`, wherever normfold has imported them; yields those that are not there."""
        missing, changed = list[str](), list[tuple[Any, str, Any]]()
        for stage, module, path in POINTS:
            *parts, name = path.split(".")
            owner: Any = importlib.import_module(module)
            for part in parts:
                owner = getattr(owner, part, None)
            function = getattr(owner, name, None)
            if function is None:
                missing.append(f"{module}.{path}")
                continue
            timed = self.wrap(stage, function)
            for place, alias in [(owner, name), *_aliases(function)]:
                changed.append((place, alias, function))
                setattr(place, alias, timed)
        try:
            yield missing
        finally:
            for place, alias, function in changed:
                setattr(place, alias, function)


def _aliases(function: Any) -> list[tuple[Any, str]]:
    """Where ``from module import function`` has bound it."""
    return [
        (module, alias)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "normfold"
        for alias, value in list(vars(module).items())
        if value is function
    ]


def profile(factory: str, verify: Verify = "final") -> None:
    """Convert once in this process and print the stages, slowest first."""
    first = time.perf_counter()
    print(f"{'seconds':>8} {'CPU':>7} {'calls':>6} {'peak +MB':>8}  stage")
    for name, load in IMPORTS:
        start, used = time.perf_counter(), time.process_time()
        load()
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        print(f"{wall:8.2f} {cpu:7.2f} {'':>15}  import {name}")
    import normfold

    convert, stages = normfold.convert, Stages()
    with tempfile.TemporaryDirectory() as folder, stages.installed() as missing:
        result = convert(factory, export="onnx", output=folder, verify=verify)
        stages.switch()
    for stage, timer in sorted(stages.timers.items(), key=lambda item: -item[1].wall):
        print(f"{timer.wall:8.2f} {timer.cpu:7.2f} {timer.calls:6d} {timer.memory:8.0f}  {stage}")
    print(f"{time.perf_counter() - first:8.2f} {'':>7} {'':>15}  all, after the start of Python")
    if missing:
        print(f"no longer there, counted elsewhere: {', '.join(missing)}")
    print("\nchecks:")
    checks = [*result.report.checks, *(item.check for item in result.report.passes if item.check)]
    for check in checks:
        print(f"{check.seconds:8.2f}  {check.kind}")
    print("\npasses:")
    for item in result.report.passes:
        print(f"{item.seconds:8.2f}  {item.spec}")
