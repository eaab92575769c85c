"""The verdict of a file: of its own bytes, in its own runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from normfold.errors import EnvironmentMissing
from normfold.judge.agreement import Promise
from normfold.judge.runs import Run
from normfold.judge.verifier import Verifier
from normfold.report.objects import AnyCheck
from normfold.report.verdict import Artefact, Budget, Verdict
from normfold.targets.order import Draft, sha256

_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "OpenVINO": "openvino",
    "PyTorch": "torch",
    "TensorRT": "tensorrt",
    "TensorRT-RTX": "tensorrt-rtx",
}


@dataclass(frozen=True)
class Judge:
    """What files are compared with.

    Attributes:
        verifier: knows the original; None judges nothing.
        half_budget: relative error of a network in half precision.
        promise: of an integer network; its files are judged by ``budget``.
        rounded: a budget in its place for the first way in which a file is run, where kernels round by themselves.
        plain: makes the original's own export, and gives how it is run, by the kind of the check.
        strict: ask for that always, not only where a file is outside its tolerance.
        original: what the reference is called, where it is not the network that was loaded.
    """

    verifier: Verifier | None
    half_budget: float | None = None
    promise: Promise | None = None
    plain: Callable[[], dict[str, Run]] = dict
    strict: bool = False
    budget: Budget = field(default_factory=Budget)
    rounded: Budget | None = None
    original: str = ""
    _made: list[dict[str, Run]] = field(default_factory=list, init=False, compare=False)

    def judge(self, draft: Draft, emit: Callable[[Any], None]) -> Verdict:
        """Run a file as its users do and compare; every comparison is emitted.

        In its other ways it is run on one input, as the optimisations of a runtime may hide a fault of the file;
        and on all where the first way is outside its tolerance, for integers, and for ``strict``.

        Raises:
            ExportError: its runtime refuses it.
        """
        runtime = runtime_name(draft.runtime)
        if self.verifier is None:
            return Verdict("not judged", runtime, "not judged: --verify off")
        checks: list[AnyCheck] = []
        try:
            for kind, run in draft.runs():
                one = bool(checks) and not self.strict and not checks[0].failures()
                budget = self.budget if checks else self.rounded or self.budget
                checks.append(self._check(kind, draft.name, run, one, budget))
                emit(checks[-1])
                del run  # it holds the weights, which the next way reads again
        except EnvironmentMissing as error:
            why = error.what + (f": {error.found}" if error.found else "")
            return Verdict("not judged", runtime, f"not judged here ({why})")
        bad = [f"{check.kind}: {text}" for check in checks for text in check.failures()]
        if bad:
            return Verdict("fail", runtime, bad[0])
        stands = f", standing in for {draft.stands_for}" if draft.stands_for else ""
        return Verdict("pass", runtime, f"{self._words(checks)} in {runtime}{stands}")

    def _check(self, kind: str, name: str, run: Any, one: bool, budget: Budget) -> AnyCheck:
        assert self.verifier is not None
        if self.promise is not None:
            return self.promise.check(kind, name, run, budget)
        check = self.verifier.outputs(
            kind, run, self.half_budget, lambda: self._own().get(kind), self.strict, one
        )
        return replace(check, artefact=name)

    def _own(self) -> dict[str, Run]:
        if not self._made:
            self._made.append(self.plain())
        return self._made[0]

    def _words(self, checks: list[AnyCheck]) -> str:
        if self.promise is not None:
            return f"within the budget ({checks[0].words})"  # type: ignore[union-attr]
        if self.half_budget is not None:
            other = f", {self.original}," if self.original else ""
            return f"within {self.half_budget:g} of the original{other}"
        return f"equivalent to {self.original}" if self.original else "equivalent"


def artefact(draft: Draft, kind: str, target: str, folder: Any, verdict: Verdict) -> Artefact:
    """A file as the report lists it, under the path that it will have in ``folder``."""
    return Artefact(
        path=str(folder / draft.name),
        format=kind,
        target=target,
        size=draft.size,
        sha256=sha256(draft.path),
        verdict=verdict,
        files=tuple(file.name for file in draft.files),
        written=verdict.state != "fail",
    )


def runtime_name(name: str) -> str:
    """A runtime with its installed version: ``onnxruntime 1.31.1``."""
    package = _PACKAGES.get(name, name)
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return name
