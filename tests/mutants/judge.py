"""What a mutant does on fresh inputs, and what each line of the verdict says of it.

The yardstick shares nothing with the verdict but the interpreter of graphs: inputs of another seed, tokens of the
whole vocabulary, the original in float64. A mutant is *plainly wrong* for a line where its error is above `FLOOR`
of that line and above so many times what the untouched network shows on the same inputs.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normfold.errors import NormfoldError
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator, Float64
from normfold.judge.agreement import Promise
from normfold.judge.certificate import certify
from normfold.judge.files import Judge
from normfold.judge.verifier import Verifier
from normfold.target import target
from normfold.targets.order import runs_of
from tests.mutants import files, graphs
from tests.mutants.networks import Made, inputs_of, make

PARTLY = "certificate-partly"  # of a network with an op that has no meaning in a field
TIMES = 100.0  # the untouched network's error; of approximate results TIMES_APPROXIMATE, above their budget
TIMES_APPROXIMATE = 4.0
# What is plain: in float64 any difference above rounding; for the algebra and for float32 a hundred times and ten
# times what they allow (1e-10; 16 ulps); for half precision twice its budget; for integers an error as of
# 24 dB, since from 30 dB on a budget asks for no more.
FLOOR = {"certificate": 1e-13, PARTLY: 1e-13, "algebra": 1e-8, "rounding": 2e-5, "half": 0.04, "runtime": 2e-5,
         "runtime-half": 0.04, "runtime-integers": 10 ** (-24 / 20)}  # fmt: skip
UNSEEN = 16 * 2**-23  # float32 does not see what is below


@dataclass
class Row:
    """One mutant.

    Attributes:
        level: un-baked, baked or file.
        error: on fresh inputs, relative to the size of the output; infinite where one is not finite.
        plain: for each line that judged it, whether it is plainly wrong by the yardstick.
        caught: for each line, whether the line failed it.
        state: what the certificate says.
        refused: what it cannot be run for; no verdict is needed.
    """

    network: str
    level: str
    place: str
    fault: str
    error: float = math.nan
    plain: dict[str, bool] | None = None
    caught: dict[str, bool] | None = None
    state: str = ""
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Alarm:
    """An untouched network that a line failed at a seed."""

    network: str
    line: str
    seed: int
    why: str


def largest(reference: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest error of some output, relative to its largest number."""
    return max((_largest(r, y) for r, y in zip(reference, found, strict=True)), default=0.0)


def _largest(reference: Tensor, found: Tensor) -> float:
    if reference.shape != found.shape:
        return math.inf
    reference, found = reference.double(), found.double()
    difference = (reference - found).abs()
    difference = torch.where((reference == found) | reference.isnan(), 0.0, difference)
    size = float(reference[reference.isfinite()].abs().max())
    return (
        float(difference.max().nan_to_num(math.inf, math.inf)) / size
        if not difference.isnan().any()
        else math.inf
    )


def norm(reference: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """|y - r| / |r| of the worst output."""
    return max((_norm(r, y) for r, y in zip(reference, found, strict=True)), default=0.0)


def _norm(reference: Tensor, found: Tensor) -> float:
    if reference.shape != found.shape:
        return math.inf
    error = float((reference.double() - found.double()).norm() / reference.double().norm())
    return error if math.isfinite(error) else math.inf


def one(work: tuple[str, int, int, int]) -> dict[str, Any]:
    """The mutants of one network, and its false alarms: (name, mutants of a level, other seeds, seed)."""
    name, limit, seeds, seed = work
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    part: dict[str, Any] = {"network": name, "rows": [], "alarms": [], "verdicts": 0, "error": ""}
    try:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            bench = Bench(name, Path(folder))
            part["own"] = bench.own
            for level in bench.levels:
                part["rows"] += [row.to_dict() for row in bench.rows(level, limit, seed)]
            for count, alarms in bench.alarms(range(1, seeds + 1)):
                part["verdicts"] += count
                part["alarms"] += map(asdict, alarms)
    except Exception:  # the others go on
        part["error"] = traceback.format_exc()
    part["seconds"] = time.perf_counter() - start
    return part


class Bench:
    """A network and its untouched results, ready to judge mutants."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.made: Made = make(name, folder)
        made = self.made
        verifier = made.judge.verifier
        assert verifier is not None
        self.verifier: Verifier = verifier
        self.inputs = made.fresh(0)
        self.reference = _float64(made.original, self.inputs)
        self.half = made.judge.half_budget is not None
        self.integers = made.judge.promise is not None
        self.measure = norm if self.half or self.integers else largest
        suffix = "-half" if self.half else "-integers" if self.integers else ""
        uncovered = certify(made.original, made.unbaked).uncovered
        self.certificate = PARTLY if uncovered else "certificate"
        self.line = {"baked": "half" if self.half else "rounding", "file": f"runtime{suffix}"}
        self.own = {
            "un-baked": largest(self.reference, _float64(made.unbaked, self.inputs)),
            "file": max(
                self.measure(self.reference, call(self.inputs))
                for _, call in self._runs(made.draft.path)
            ),
        }
        if not self.integers:
            self.own["baked"] = self.measure(self.reference, _float64(made.result, self.inputs))

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(level for level in ("un-baked", "baked", "file") if level in self.own)

    def rows(self, level: str, limit: int, seed: int = 0) -> Iterator[Row]:
        """So many mutants, judged."""
        draw = random.Random(f"{seed} {self.made.name} {level}")
        if level == "file":
            for fault in files.chosen(files.faults(self.made.draft.path, draw), limit):
                yield self._file(fault, draw)
            return
        graph = self.made.unbaked if level == "un-baked" else self.made.result
        for item in graphs.chosen(graphs.faults(graph, draw), limit):
            yield self._graph(level, graph, item)

    def _graph(self, level: str, graph: Graph, fault: graphs.Fault) -> Row:
        row = Row(self.made.name, level, fault.place, str(fault))
        try:
            wrong = fault.put_into(graph)
            found = _float64(wrong, self.inputs)
            if level == "baked":
                wrong.module(*self.inputs)
        except Exception as error:  # what a broken graph can raise: it is no mutant that runs
            row.refused = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return row
        measure = self.measure if level == "baked" else largest
        row.error = measure(self.reference, found)
        if level == "baked":
            check: Callable[[], bool] = lambda: self._baked(wrong).ok  # noqa: E731
            self._say(row, {self.line["baked"]: check})
            return row

        def certificate() -> bool:
            row.state = certify(self.made.original, wrong).state
            return row.state != "failed"

        self._say(
            row, {self.certificate: certificate, "algebra": lambda: self.verifier.algebra(wrong).ok}
        )
        return row

    def _baked(self, graph: Graph) -> Any:
        budget = self.made.judge.half_budget
        if budget is not None:
            return self.verifier.half("float16", graph, budget)
        return self.verifier.rounding(graph)

    def _file(self, fault: files.Fault, draw: random.Random) -> Row:
        row = Row(self.made.name, "file", fault.place, str(fault))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            try:
                path = fault.write(self.made.draft.path, Path(folder), draw)
                runs = list(self._runs(path))
                row.error = max(self.measure(self.reference, call(self.inputs)) for _, call in runs)
            except (
                Exception
            ) as error:  # what a broken file can raise: it is refused without any verdict
                row.refused = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                return row
            draft = replace(self.made.draft, path=path, runs=lambda: iter(runs))
            self._say(row, {self.line["file"]: lambda: _passes(self.made.judge, draft)})
        return row

    def _say(self, row: Row, lines: dict[str, Callable[[], bool]]) -> None:
        """What each line says: one that cannot run a mutant has caught it."""
        row.plain, row.caught = {}, {}
        for line, ok in lines.items():
            times = TIMES_APPROXIMATE if "half" in line or "integers" in line else TIMES
            row.plain[line] = row.error > max(FLOOR[line], times * self.own[row.level])
            try:
                row.caught[line] = not ok()
            except Exception as error:  # the verdict reports what a mutant raises
                row.caught[line], row.state = True, row.state or type(error).__name__

    def _runs(self, path: Path) -> Iterator[tuple[str, Any]]:
        return runs_of(target("ort-x86"), path)

    def alarms(self, seeds: Sequence[int]) -> Iterator[tuple[int, list[Alarm]]]:
        """What each line says of the untouched network, at other seeds than that of the mutants."""
        made = self.made
        for seed in seeds:
            found, verifier = [], Verifier(made.original, seed)
            certificate = certify(made.original, made.unbaked, seed)
            if certificate.state == "failed":
                found.append(Alarm(made.name, "certificate", seed, str(certificate.outputs)))
            checks = [verifier.algebra(made.unbaked)]
            budget = made.judge.half_budget
            if budget is not None:
                checks.append(verifier.half("half", made.result, budget))
            elif "baked" in self.own:
                checks.append(verifier.rounding(made.result))
            found += [
                Alarm(made.name, check.kind, seed, str(check.failures()))
                for check in checks
                if not check.ok
            ]
            judge = replace(made.judge, verifier=verifier)
            if made.judge.promise is not None:
                judge = replace(judge, promise=self._promise(seed))
            verdict = judge.judge(
                replace(made.draft, runs=lambda: self._runs(made.draft.path)), lambda event: None
            )
            if verdict.state != "pass":
                found.append(Alarm(made.name, self.line["file"], seed, verdict.why))
            yield len(checks) + 2, found

    def _promise(self, seed: int) -> Promise:
        """The same promise on other inputs."""
        batches = [inputs_of(self.made.network, 32, 100003 + 2 * seed + part) for part in range(2)]
        return Promise.of(batches, None, self.made.original, self.made.result)


def _passes(judge: Judge, draft: Any) -> bool:
    try:
        return judge.judge(draft, lambda event: None).state == "pass"
    except NormfoldError:
        return False


@torch.no_grad()
def _float64(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = Evaluator(graph.module, Float64())(*inputs)
    return [y for y in found if isinstance(y, Tensor)]
