"""From a trained network to one whose LayerNorms fold away: replace, distil, judge what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.data.metrics import Comparison
from normfold.data.samples import Data, load_data
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.graph import is_symbolic
from normfold.job import Policy, Source, Train
from normfold.judge import Verifier
from normfold.ops.lookups import table_rows
from normfold.passes.canonicalize import Canonicalize
from normfold.passes.replace_layernorm import ReplaceLayernorm
from normfold.progress import Listener, Progress, silent
from normfold.report import PassReport
from normfold.report.events import Rewritten
from normfold.report.sites import site_statuses
from normfold.report.training import Ranking, TrainingReport
from normfold.rewrite import run_pipeline
from normfold.rewrite.offline import fits, selected, slots
from normfold.steps.work import Work
from normfold.train.distill import distill
from normfold.train.harm import Candidate, rank
from normfold.train.ranks import process_group
from normfold.train.student import Eval, is_float, own_tensors

_FITTED = 1024  # samples that affines are fitted to
_RANKED = 512  # samples that harm is measured on


@dataclass(frozen=True)
class Student:
    """The trained graph, un-baked, the passes that made it, and the report."""

    graph: Graph
    passes: list[PassReport]
    report: TrainingReport


def train(step: Train, graph: Graph, work: Work) -> Graph:
    """The step of a job: the student, which the verdict compares with from here on."""
    source, policy = work.job.source, work.job.policy
    given: dict[str, Any] = {"normalisation": work.normalisation, "say": work.say}
    with process_group() as rank:
        student = train_student(graph, step, source, policy, **given)
    work.rank = rank
    work.record.emit(student.report)
    result = student.graph
    sites = site_statuses(result, student.passes)
    work.record.emit(Rewritten(tuple(student.passes), tuple(sites), result.parameter_bytes()))
    if work.verifier is not None:
        work.verifier = Verifier(result, source.seed, work.samples)
    return result


def train_student(
    graph: Graph,
    step: Train,
    source: Source,
    policy: Policy | None = None,
    *,
    normalisation: Any = None,
    say: Listener = silent,
) -> Student:
    """Replace the LayerNorms of a captured graph and distil from the original.

    The student that comes back computes in eval mode what was trained, as channel affines that fold away.

    Raises:
        UsageError: no LayerNorm can be replaced, or the data do not fit the network.
    """
    policy = policy or Policy()
    _require_judge(step, policy)
    data = _load(graph, source, normalisation)
    training, held_out = data.split(step.hold_out, source.seed)
    teacher, passes = run_pipeline(graph, [Canonicalize()])
    say(Progress("fitting the nearest affine of each LayerNorm"))
    teacher.samples = _samples(graph, training, step.batch_size)
    ranking, norms = _choose(teacher, step, policy.metric, held_out, say)
    student = own_tensors(teacher)
    report = ReplaceLayernorm(step.to, norms).run(student)
    if not report.applied:
        raise UsageError(
            "there is no LayerNorm to replace",
            found=", ".join(f"{item.site}: {item.code}" for item in report.declined[:5]) or "none",
            hint="`normfold inspect MODEL` lists the norms",
        )
    if step.steps == 0:
        result = TrainingReport(
            step.to, data.source, len(training), len(held_out), stopped="not trained"
        )
    else:
        result = distill(teacher, student, data, step, seed=source.seed, say=say)
    result.ranking, result.max_drop = ranking, policy.max_drop
    student.original = Eval(student)
    say(Progress("comparing the student with the original on held-out samples"))
    compared = Comparison(logits=step.logits, metric=policy.metric)
    with torch.no_grad():
        for inputs, labels in held_out.batches(step.batch_size):
            compared.add(_outputs(student, inputs), _outputs(teacher, inputs), labels)
    result.drift = compared.drift().to_dict()
    student.notes = [*graph.notes, *data.notes]
    student.samples = None
    return Student(student, [*passes, report], result)


def _require_judge(step: Train, policy: Policy) -> None:
    """A limit needs something to be judged by: better said before the training than after."""
    limits = {"--max-drop": policy.max_drop, "--budget": step.budget}
    given = [name for name, limit in limits.items() if limit is not None]
    if given and not step.logits and policy.metric is None:
        raise UsageError(
            f"there is nothing to judge `{given[0]}` by: outputs that are not class scores have no top-1",
            hint="give `--metric pkg.mod:fn`, a function of outputs and labels; more is better",
        )


def _load(graph: Graph, source: Source, normalisation: Any) -> Data:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UsageError("a network that takes more than tensors cannot be trained on samples")
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    shapes = [
        tuple(None if is_symbolic(size) else int(size) for size in node.meta["val"].shape)
        for node in placeholders
    ]
    return load_data(
        source.data,
        graph.input_names,
        shapes=shapes,
        dtypes=[leaf.dtype for leaf in leaves],
        tables=table_rows(graph),
        limit=source.limit,
        normalisation=normalisation,
        trust_modules=source.trust_modules,
    )


def _samples(graph: Graph, data: Data, batch: int) -> list[Any]:
    rows = torch.arange(min(_FITTED, len(data)))
    _, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    return [pytree.tree_unflatten(list(data.inputs(part)), tree) for part in rows.split(batch)]


def _choose(
    teacher: Graph, step: Train, metric: str | None, held_out: Data, say: Listener
) -> tuple[Ranking | None, tuple[str, ...]]:
    """The harm of each norm, and which to replace."""
    patterns = step.norms
    found = [slot for slot in slots(teacher) if slot.per_channel and selected(slot, patterns)]
    if not found:
        return None, patterns
    candidates: list[Candidate] = [
        (slot.path, slot.source, slot.result, fit.scale, fit.shift)
        for slot, fit in zip(found, fits(teacher, found, 1e-6), strict=True)
    ]
    some = held_out
    if step.budget is None:  # for the report alone
        some = replace(held_out, index=held_out.rows[:_RANKED])
    ranking = rank(
        teacher,
        candidates,
        some,
        logits=step.logits,
        metric=metric,
        batch=step.batch_size,
        say=say,
    )
    if step.budget is None:
        return ranking, patterns
    count = ranking.within(step.budget)
    if not count:
        (site, _), point = ranking.harms[0], ranking.dial[1]
        raise UsageError(
            f"no LayerNorm can be replaced within a budget of {step.budget:g}",
            where=site,
            found=f"the cheapest one costs {ranking.drop(point):.4g} on {len(some)} samples"
            + (f", standard error {point.error:.2g}" if point.error else ""),
            hint="raise `--budget`: training recovers most of it, and `--max-drop` judges what is left; more "
            "samples make the measurement sharper",
        )
    return ranking, tuple(site for site, _ in ranking.harms[:count])


def _outputs(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Floating-point outputs of a graph for flat inputs."""
    _, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    args, kwargs = pytree.tree_unflatten(list(inputs), tree)
    leaves = pytree.tree_leaves(graph.module(*args, **kwargs))
    return tuple(leaf for leaf in leaves if is_float(leaf))
