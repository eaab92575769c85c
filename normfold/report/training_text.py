"""Terminal rendering of a distillation."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from normfold.report.table import table
from normfold.report.training import Ranking, TrainingReport

_FEW = 5


def print_training(
    training: TrainingReport, console: Console, line: Callable[[str], None], verbose: bool = False
) -> None:
    """Harm of the norms, how training went, and how far the student is from its teacher."""
    console.print()
    if training.ranking is not None and training.ranking.harms:
        _print_ranking(training.ranking, console, line, verbose)
    line(
        f"training  {training.to}: {training.samples} samples of {training.data}, "
        f"{training.held_out} held out; {training.steps} steps in {training.seconds:.0f} s "
        f"({training.stopped})"
    )
    if training.steps:
        refreshed = ", statistics taken anew" if training.refreshed else ""
        line(
            f"          distance from the original {training.start:.4g} -> {training.distance:.4g} "
            f"(best after step {training.best}{refreshed})"
        )
    for back in training.rollbacks:
        line(
            f"          step {back.step}: {back.why}; taken back to step {back.back_to}, "
            f"rate {back.rate:.1e} from there"
        )
    drift = training.drift
    if drift.get("agreement") is not None:
        line(f"drift     top-1 agreement {drift['agreement']:.2%}, KL {drift['kl']:.4g}")
    if drift.get("relative_mse") is not None:
        line(f"drift     relative squared error {drift['relative_mse']:.4g}")
    if drift.get("accuracy_teacher") is not None:
        before, after = drift["accuracy_teacher"], drift["accuracy_student"]
        line(
            f"drift     accuracy {before:.2%} -> {after:.2%} "
            f"({0.0 - training.drift['drop']:+.2f} points, standard error {drift['paired_se']:.2f})"
        )
    for name in ("perplexity", "metric"):
        if drift.get(f"{name}_teacher") is not None:
            before, after = drift[f"{name}_teacher"], drift[f"{name}_student"]
            line(f"drift     {name} {before:.4g} -> {after:.4g}")
    if training.max_drop is not None:
        lost = "unknown" if training.drop is None else f"{training.drop:.4g} {training.unit}"
        verdict = "within" if training.ok else "NOT within"
        line(f"drift     lost {lost} on the held-out samples: {verdict} {training.max_drop:g}")
    if training.diverged:
        line("training  DIVERGED: nothing of it may be used")


def _print_ranking(
    ranking: Ranking, console: Console, line: Callable[[str], None], verbose: bool
) -> None:
    worst = list(reversed(ranking.harms))
    shown = worst if verbose else worst[:_FEW]
    rows = [(site, f"{harm:.4f}") for site, harm in shown]
    if len(shown) < len(worst):
        rows.append((f"and {len(worst) - len(shown)} more (--verbose)", ""))
    console.print(table("harm", ("norm replaced alone, untrained", "divergence"), rows))
    few = ranking.worst()
    if 2 * len(few) < len(worst):
        line(f"note      {len(few)} of {len(worst)} norms hold half of the harm: {', '.join(few)}")
    if verbose:
        columns = (
            "cheapest replaced",
            "the last",
            "divergence",
            "agreement %",
            "accuracy %",
            "metric",
            "standard error",
        )
        points = [
            (
                point.count,
                point.last,
                f"{point.divergence:.4f}",
                *map(_rounded, (point.agreement, point.accuracy, point.metric, point.error)),
            )
            for point in ranking.dial
        ]
        console.print(table("dial, untrained", columns, points))


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
