"""Terminal rendering of a quantisation."""

from __future__ import annotations

from collections.abc import Callable

from normfold.report.quantization import (
    Confidence,
    Evidence,
    MixedReport,
    Placement,
    QuantizationReport,
)

_FEW, _BARS, _WIDTH = 5, 12, 40


def print_quantization(
    made: QuantizationReport, line: Callable[[str], None], verbose: bool = False
) -> None:
    """Where ranges come from, what it costs on the inputs, and what the runtime runs in integers."""
    kind = "fp8       8-bit floats" if made.scheme == "fp8" else f"integers  {made.scheme}"
    line(
        f"{kind} for {made.target}: {made.weights} weights and {made.activations} activations on grids, "
        f"{made.seconds:.0f} s"
    )
    _print_evidence(made, line)
    if made.mixed is not None:
        _print_mixed(made.mixed, line, verbose)
    if made.tried:
        found = ", ".join(f"{name} {value:.3g}" for name, value in made.tried.items())
        line(f"effort    divergence on held-out inputs: {found}")
    if made.placement is not None:
        _print_placement(made.placement, line, verbose)
    _print_drift(made, line)
    _print_census(made, line, verbose)
    if made.confidence is not None:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in made.confidence.parts.items())
        trusted = made.confidence.score >= Confidence.TRUSTED
        end = "" if trusted else f": below {Confidence.TRUSTED:g}, judge it on data"
        line(f"trust     {made.confidence.score:.2f} of 1 ({parts}){end}")
    for text in made.warnings:
        line(f"warning   {text}")


def _print_evidence(made: QuantizationReport, line: Callable[[str], None]) -> None:
    evidence = made.evidence
    if evidence is None:
        return
    text = f"ranges    {evidence.source}"
    if evidence.loss is not None:
        text += f"; distance from the norms' statistics {evidence.noise:.3g} -> {evidence.loss:.3g}"
    line(text)
    if evidence.loss is not None and evidence.loss > Evidence.NATURAL:
        worst = ", ".join(f"`{site}` {loss:.2g}" for site, loss in evidence.worst.items())
        line(
            f"ranges    not matched as natural images match them (up to {Evidence.NATURAL:g}); worst: {worst}"
        )
    if evidence.covered is not None:
        line(f"ranges    the statistics reach {evidence.covered:.0%} of the activations")


def _print_placement(
    placement: Placement, line: Callable[[str], None], verbose: bool = False
) -> None:
    """How long the file takes beside floats, and what was left in floats for it."""
    low, high = placement.interval
    when = "measured by an earlier run" if placement.reused else "measured here"
    ratio = f"{placement.ratio:.2f} of the time of floats ({low:.2f} to {high:.2f}, {when})"
    if placement.whole:
        line(
            f"speed     integers take {ratio}: the whole network stays in floats (--no-keep-if-faster)"
        )
        return
    line(f"speed     {ratio}")
    shown = placement.layers if verbose else placement.layers[:_FEW]
    if shown:
        line(f"speed     {len(placement.layers)} layers stay in floats, which are faster there")
    for item in shown:
        times = f"{1e3 * item.integers:.3g} ms in integers, {1e3 * item.floats:.3g} ms in floats"
        line(f"          {' + '.join(item.layers)}: {times}")
    if len(placement.layers) > len(shown):
        line(f"          ... and {len(placement.layers) - len(shown)} more (--verbose)")


def _print_drift(made: QuantizationReport, line: Callable[[str], None]) -> None:
    drift = made.drift
    figures = (
        ("agreement", "top-1 agreement {:.2%}"),
        ("kl", "KL {:.3g}"),
        ("relative_mse", "relative squared error {:.3g}"),
        ("snr_db", "signal to noise {:.1f} dB"),
    )
    found = [text.format(drift[name]) for name, text in figures if drift.get(name) is not None]
    if found:
        line(f"drift     on {drift['samples']} inputs: {', '.join(found)}")
    if made.foretold is not None:
        line(f"foretold  KL up to {made.foretold:.3g} on real inputs, in nine cases of ten")
    if drift.get("accuracy_teacher") is not None:
        before, after = drift["accuracy_teacher"], drift["accuracy_student"]
        line(f"drift     accuracy {before:.2%} -> {after:.2%}")
    if made.max_drop is not None:
        lost = "unknown" if made.lost is None else f"{made.lost:.3g} points"
        kept = made.lost is not None and made.lost <= made.max_drop
        line(f"drift     lost {lost}: {'within' if kept else 'NOT within'} {made.max_drop:g}")


def _print_census(made: QuantizationReport, line: Callable[[str], None], verbose: bool) -> None:
    if made.scheme == "lossless":
        found = [(kind, made.census.get(kind, 0)) for kind in ("MatMulNBits", "DequantizeLinear")]
        text = ", ".join(f"{kind} {count}" for kind, count in found if count)
        if text:
            line(f"census    onnxruntime reads weights in integers and computes in floats: {text}")
        return
    if made.integer or made.floats:
        kinds = [*made.integer, *(kind for kind in made.floats if kind not in made.integer)]
        counts = [(kind, made.integer.get(kind, 0), made.floats.get(kind, 0)) for kind in kinds]
        text = ", ".join(f"{kind} {whole} of {whole + floats}" for kind, whole, floats in counts)
        line(f"census    onnxruntime runs in integers: {text}")
        both = sum(made.census.get(kind, 0) for kind in ("QuantizeLinear", "DequantizeLinear"))
        line(f"census    {both} conversions between integers and floats are left")
    blocked = list(made.blocked.items())
    if blocked and not made.integer and not made.floats:
        line(f"floats    {len(blocked)} layers have no kernel in so few bits, and stay in floats")
    for name, rule in blocked if verbose else blocked[:_FEW]:
        line(f"          {name}: {rule}")
    if len(blocked) > _FEW and not verbose:
        line(f"          ... and {len(blocked) - _FEW} more (--verbose)")


def _print_mixed(mixed: MixedReport, line: Callable[[str], None], verbose: bool) -> None:
    """The frontier as bars of the harm over the cost, and the layers that are not in the common format."""
    counts: dict[int, int] = {}
    for bits in mixed.bits.values():
        counts[bits] = counts.get(bits, 0) + 1
    text = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(counts.items()))
    allowed = "" if mixed.budget is None else f" of {mixed.budget:,.4g} allowed"
    line(f"formats   {text}: {mixed.cost:,.4g} {mixed.unit}{allowed}")
    line(
        f"formats   divergence {mixed.divergence:.3g}, foretold {mixed.harm:.3g} (which ranks choices, and is "
        "not an estimate)"
    )
    worst = max((harm for _, harm in mixed.frontier), default=0.0) or 1.0
    step = max(1, -(-len(mixed.frontier) // _BARS))
    for cost, harm in mixed.frontier[::step]:
        bar = "#" * max(1, round(_WIDTH * harm / worst))
        line(f"          {cost:>12,.4g} {mixed.unit}  {harm:8.3g}  {bar}")
    for cost, harm, lost in mixed.measured:
        line(
            f"          {cost:>12,.4g} {mixed.unit}  as a whole {harm:.3g}, {lost:.3g} points of answers changed"
        )
    if verbose:
        for path, bits in mixed.bits.items():
            line(f"          {path}: {bits} bits")
