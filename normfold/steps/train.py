"""From a trained network to one whose LayerNorms fold away: replace, distil, judge what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.data.samples import Data, load_data
from normfold.errors import UsageError
from normfold.graph import Graph
from normfold.graph.graph import is_symbolic
from normfold.passes.canonicalize import Canonicalize
from normfold.passes.replace_layernorm import ReplaceLayernorm
from normfold.report import PassReport
from normfold.report.training import Ranking, TrainingReport
from normfold.rewrite import run_pipeline
from normfold.rewrite.offline import fits, selected, slots
from normfold.rewrite.presets import TRAINED
from normfold.train.distill import distill
from normfold.train.harm import Candidate, rank
from normfold.train.metrics import Comparison
from normfold.train.ranks import rank as rank_of_process
from normfold.train.recipe import Recipe
from normfold.train.student import as_module, is_float, own_tensors

Progress = Callable[[str], None]

__all__ = ["TRAINED", "Recipe", "Student", "Training", "rank_of_process", "train_student"]

_FITTED = 1024  # samples that affines are fitted to
_RANKED = 512  # samples that harm is measured on


@dataclass(frozen=True)
class Training:
    """What `normfold.convert` needs to train a student.

    Attributes:
        data: anything that `normfold.data.samples.load_data` takes.
        norms: patterns of the LayerNorms to replace; all when empty.
        budget: of those, replace the cheapest only, as many as lose at most so much before any training (with 95 %
            confidence), in the unit of ``max_drop``; None replaces all of them.
        recipe: of the distillation; None takes the affines as they are fitted.
        max_drop: what the student may lose on held-out samples: points of top-1, of agreement with the teacher
            where there are no labels, or of ``metric`` if there is one; None does not judge.
        metric: ``pkg.mod:fn``, called with outputs and labels; more is better. Reported, and judged.
        limit: at most so many samples.
        trust_modules: packages whose classes a ``.pt`` file of samples may use.
        checkpoint: file to resume from, and to write at every evaluation.
    """

    data: Any
    norms: Sequence[str] = ()
    budget: float | None = None
    recipe: Recipe | None = field(default_factory=Recipe)
    max_drop: float | None = None
    metric: str | None = None
    limit: int | None = None
    trust_modules: Sequence[str] = ()
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Student:
    """The trained graph, un-baked, the passes that made it, and the report."""

    graph: Graph
    passes: list[PassReport]
    report: TrainingReport


def train_student(
    graph: Graph,
    to: str,
    options: Training,
    *,
    normalisation: Any = None,
    progress: Progress | None = None,
) -> Student:
    """Replace the LayerNorms of a captured graph and distil from the original.

    The student that comes back computes in eval mode what was trained, as channel affines that fold away.

    Raises:
        UsageError: no LayerNorm can be replaced, or the data do not fit the network.
    """
    say = progress or (lambda line: None)
    recipe = options.recipe or Recipe()
    _require_judge(options, recipe)
    data = _load(graph, options, normalisation)
    training, held_out = data.split(recipe.hold_out, recipe.seed)
    teacher, passes = run_pipeline(graph, [Canonicalize()])
    say("fitting the nearest affine of each LayerNorm")
    teacher.samples = _samples(graph, training, recipe.batch)
    ranking, norms = _choose(teacher, options, recipe, held_out, say)
    student = own_tensors(teacher)
    report = ReplaceLayernorm(to, norms).run(student)  # type: ignore[arg-type]
    if not report.applied:
        raise UsageError(
            "there is no LayerNorm to replace",
            found=", ".join(f"{item.site}: {item.code}" for item in report.declined[:5]) or "none",
            hint="`normfold inspect MODEL` lists the norms",
        )
    if options.recipe is None:
        result = TrainingReport(
            to, data.source, len(training), len(held_out), stopped="not trained"
        )
    else:
        result = distill(
            teacher, student, data, recipe, to=to, checkpoint=options.checkpoint, progress=say
        )
    result.ranking, result.max_drop = ranking, options.max_drop
    student.original = _Eval(student)
    say("comparing the student with the original on held-out samples")
    compared = Comparison(logits=recipe.logits, metric=options.metric)
    with torch.no_grad():
        for inputs, labels in held_out.batches(recipe.batch):
            compared.add(_outputs(student, inputs), _outputs(teacher, inputs), labels)
    result.drift = compared.drift().to_dict()
    student.notes = [*graph.notes, *data.notes]
    student.samples = None
    return Student(student, [*passes, report], result)


def _require_judge(options: Training, recipe: Recipe) -> None:
    """A limit needs something to be judged by: better said before the training than after."""
    limits = {"--max-drop": options.max_drop, "--budget": options.budget}
    given = [name for name, limit in limits.items() if limit is not None]
    if given and not recipe.logits and options.metric is None:
        raise UsageError(
            f"there is nothing to judge `{given[0]}` by: outputs that are no class scores have no top-1",
            hint="give `--metric pkg.mod:fn`, a function of outputs and labels; more is better",
        )


def _load(graph: Graph, options: Training, normalisation: Any) -> Data:
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UsageError("a network that takes more than tensors cannot be trained on samples")
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    shapes = [
        tuple(None if is_symbolic(size) else int(size) for size in node.meta["val"].shape)
        for node in placeholders
    ]
    return load_data(
        options.data,
        graph.input_names,
        shapes=shapes,
        dtypes=[leaf.dtype for leaf in leaves],
        limit=options.limit,
        normalisation=normalisation,
        trust_modules=options.trust_modules,
    )


def _samples(graph: Graph, data: Data, batch: int) -> list[Any]:
    rows = torch.arange(min(_FITTED, len(data)))
    _, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    return [pytree.tree_unflatten(list(data.inputs(part)), tree) for part in rows.split(batch)]


def _choose(
    teacher: Graph, options: Training, recipe: Recipe, held_out: Data, say: Progress
) -> tuple[Ranking | None, tuple[str, ...]]:
    """The harm of each norm, and which to replace."""
    patterns = tuple(options.norms)
    found = [slot for slot in slots(teacher) if slot.per_channel and selected(slot, patterns)]
    if not found:
        return None, patterns
    candidates: list[Candidate] = [
        (slot.path, slot.source, slot.result, fit.scale, fit.shift)
        for slot, fit in zip(found, fits(teacher, found, 1e-6), strict=True)
    ]
    some = held_out
    if options.budget is None:  # for the report alone
        some = replace(held_out, index=held_out.rows[:_RANKED])
    ranking = rank(
        teacher,
        candidates,
        some,
        logits=recipe.logits,
        metric=options.metric,
        batch=recipe.batch,
        progress=say,
    )
    if options.budget is None:
        return ranking, patterns
    count = ranking.within(options.budget)
    if not count:
        (site, _), point = ranking.harms[0], ranking.dial[1]
        raise UsageError(
            f"no LayerNorm can be replaced within a budget of {options.budget:g}",
            where=site,
            found=f"the cheapest one costs {ranking.drop(point):.4g} on {len(some)} samples"
            + (f", standard error {point.error:.2g}" if point.error else ""),
            hint="raise `--budget`: training recovers most of it, and `--max-drop` judges what is left; more "
            "samples make the measurement sharper",
        )
    return ranking, tuple(site for site, _ in ranking.harms[:count])


class _Eval(nn.Module):
    """The trained student in eval mode, its norms as modules: what the verdict compares with."""

    def __init__(self, student: Graph) -> None:
        super().__init__()
        self.module = as_module(student).eval()

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        outputs: list[Tensor] = self.module(*pytree.tree_leaves((args, kwargs)))
        return outputs


def _outputs(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Floating-point outputs of a graph for flat inputs."""
    _, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    args, kwargs = pytree.tree_unflatten(list(inputs), tree)
    leaves = pytree.tree_leaves(graph.module(*args, **kwargs))
    return tuple(leaf for leaf in leaves if is_float(leaf))
