"""Terminal rendering of reports, verdicts and norm lists, with rich. Readable without colour."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from normfold.report.certificate import Certificate
from normfold.report.layers import LayerReport
from normfold.report.objects import outcome
from normfold.report.table import print_line, table
from normfold.report.timing import duration
from normfold.report.verdict import AgreementCheck

if TYPE_CHECKING:
    from normfold.report.engine import EngineReport
    from normfold.report.objects import AnyCheck, Declined, Report
    from normfold.report.range import Range
    from normfold.report.timing import Timing

STATES = ("gone", "converted", "left", "kept")
_FEW = 10


# What needs no remark: a confined process, and one that reads no file.
_OF_SHAPES = ("int64", "int32", "bool")  # what layers compute sizes in
_EXPECTED = ("confined", "not confined: called from Python", "not confined: no file is read")


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """The whole run: passes, sites, verdicts, artefacts. ``verbose`` lists every site."""
    if report.model:
        print_line(console, f"model     {report.model}")
    if report.inputs:
        print_line(console, f"inputs    {report.inputs}")
    known = not report.confinement or report.confinement.startswith(_EXPECTED)
    for note in (*report.notes, *(() if known else (report.confinement,))):
        print_line(console, f"note      {note}")
    console.print()
    console.print(
        table(
            "passes",
            ("pass", "exactness", "rewrites", "declined", "seconds"),
            [
                (
                    item.spec,
                    item.exactness,
                    max(item.rewrites, len(item.applied)),
                    len(item.declined),
                    f"{item.seconds:.2f}",
                )
                for item in report.passes
            ],
        )
    )
    counts = report.counts()
    if counts:
        console.print()
        rows = [(kind, *(row.get(state, 0) for state in STATES)) for kind, row in counts.items()]
        console.print(table("sites", ("kind", *STATES), rows))
    _print_left(report, console, verbose)
    for warned in report.warnings():
        print_line(console, f"warning   {warned.code} {warned.site}: {warned.text}")
    if report.recalibration is not None:
        print_line(console, f"statistics {report.recalibration}")
    if report.training is not None:
        from normfold.report.training_text import print_training

        print_training(report.training, console, lambda text: print_line(console, text), verbose)
    if report.quantization:
        from normfold.report.quantization_text import print_quantization

        console.print()
        for made in report.quantization:
            print_quantization(made, lambda text: print_line(console, text), verbose)
    if report.engine is not None:
        _print_engine(report.engine, console)
    if report.all_checks():
        console.print()
        print_checks(report.all_checks(), console)
        for certificate in report.certificates()[-1:]:
            print_certificate(certificate, console)
    for found in report.ranges:
        _print_range(found, console, verbose)
    if report.timing is not None:
        console.print()
        print_timing(report.timing, console)
    console.print()
    _print_sizes(report, console)
    if report.seconds:
        print_line(
            console, f"took {report.seconds:.1f} s, peak memory {report.peak_memory_mb:.0f} MB"
        )
    for text in report.unmet:
        print_line(console, f"UNMET     {text}")
    print_line(console, outcome(report))


def _print_sizes(report: Report, console: Console) -> None:
    """Sizes of the files: of the model, and of what was made of it."""
    before = f"{report.size_before / 1e6:.2f} MB"
    folders = [os.path.dirname(item.path) for item in report.artefacts] or [""]
    folder = os.path.commonpath(folders) or "."
    for item in report.artefacts:
        name = os.path.relpath(item.path, folder)
        state = "" if item.written else ", not written"
        print_line(
            console,
            f"file      {name}: {item.target}, {before} -> {item.size / 1e6:.2f} MB{state}, "
            f"sha256 {item.sha256[:12]}",
        )
        print_line(console, f"          {item.verdict}")
    if report.layers is not None:
        print_line(console, f"layers    {report.layers.words}")
    if not report.artefacts:
        after = report.parameters_after / 1e6
        print_line(console, f"parameters {report.parameters_before / 1e6:.2f} MB -> {after:.2f} MB")


def _print_range(found: Range, console: Console, verbose: bool) -> None:
    for place, line in enumerate(textwrap.wrap(found.words, 70)):
        print_line(console, f"{'' if place else 'range':10}{line}")
    islands = found.islands
    if islands:
        shown = islands if verbose else islands[:_FEW]
        rows = [(item.site, item.op, item.why) for item in shown]
        if len(shown) < len(islands):
            rows.append((f"and {len(islands) - len(shown)} more (--verbose)", "", ""))
        console.print(table("", ("in float32", "op", "why"), rows))


def _print_engine(engine: EngineReport, console: Console) -> None:
    console.print()
    state = "built, opened, not run" if engine.opened else "built, not run"
    print_line(
        console,
        f"engine    {engine.name}: {'built and run' if engine.ran else state}; "
        f"{engine.builder} {engine.version} for {', '.join(engine.targets)}; "
        f"{engine.size / 1e6:.1f} MB in {engine.seconds:.1f} s",
    )
    layers = [f"{count} {x}" for x, count in engine.layers.items() if x not in _OF_SHAPES]
    print_line(console, f"layers    {', '.join(layers)}")
    for name, shapes in engine.profile.items():
        sizes = ["x".join(map(str, shape)) for shape in shapes]
        print_line(console, f"profile   {name}: {sizes[0]} to {sizes[2]}, for {sizes[1]}")


def _print_left(report: Report, console: Console, verbose: bool) -> None:
    shown = [
        site
        for site in report.sites
        if verbose or (site.state == "left" and site.kind != "constant")
    ]
    if shown:
        console.print()
        declined = {
            (item.site, item.code): item for part in report.passes for item in part.declined
        }
        rows, codes = [], []
        for site in shown[: None if verbose else 20]:
            reason = declined.get((site.site, site.code))
            where = site.detail if reason is None else reason.place
            rows.append((site.site, site.kind, site.state, site.code, where))
            codes += [reason] if reason is not None else []
        console.print(table("left in the network", ("site", "kind", "state", "code", "why"), rows))
        print_legend(codes, console)
        if len(rows) < len(shown):
            more = len(shown) - len(rows)
            print_line(console, f"... and {more} more: see the report, or --verbose")


def print_legend(declined: Iterable[Declined], console: Console) -> None:
    """What each code means and what helps, once."""
    rows = {item.code: (item.code, f"{item.reason}; hint: {item.hint}") for item in declined}
    if rows:
        console.print(table("", ("code", "meaning"), [rows[code] for code in sorted(rows)]))


def print_layers(report: LayerReport, console: Console) -> None:
    """Layers, one line each, and the first that is over its limit."""
    rows = [
        (
            layer.path,
            {"agrees": "ok", "exceeds": "FAILED", "other": "changed by passes"}[layer.state],
            f"{layer.error:.2e}",
            f"{layer.limit:.2e}",
            f"{layer.original:.2e}",
            layer.op.partition(" ")[0],
        )
        for layer in report.layers
    ]
    columns = ("module", "", "error", "allowed", "original's own", "op")
    console.print(table(f"layers ({report.kind})", columns, rows))
    print_line(console, f"layers    {report.words}")


def print_certificate(certificate: Certificate, console: Console) -> None:
    """What the prime fields say of the algebra."""
    first, *more = textwrap.wrap(certificate.words, 68)
    print_line(console, f"certificate {first}")
    for line in more:
        print_line(console, f"            {line}")


def print_checks(checks: Sequence[AnyCheck], console: Console) -> None:
    """Verdicts, one line each: the output that used most of its tolerance."""
    rows = []
    for check in checks:
        if isinstance(check, AgreementCheck):
            continue
        worst = check.worst
        rows.append(
            (
                check.kind,
                "ok" if check.ok else "FAILED",
                f"{check.max_rel if worst is None else worst.error:.2e}",
                "" if worst is None else f"{worst.tolerance:.2e}",
                "" if worst is None else f"{worst.baseline:.2e}",
                "" if worst is None else f"{worst.output} / {worst.inputs}",
                check.note,
            )
        )
    columns = ("check", "", "max rel error", "allowed", "original's own", "worst at", "note")
    console.print(table("verdicts", columns, dict.fromkeys(rows)))  # what is judged again, once
    integers = [check for check in checks if isinstance(check, AgreementCheck)]
    if integers:
        console.print()
        console.print(table("files on grids", _INTEGER_COLUMNS, map(_integer_row, integers)))
        print_line(console, f"budget    {integers[0].budget}")


_INTEGER_COLUMNS = ("check", "", "file", "samples", "agreement", "dB", "simulation's", "note")


def _integer_row(check: AgreementCheck) -> tuple[Any, ...]:
    return (
        check.kind,
        "ok" if check.ok else "FAILED",
        check.artefact,
        check.samples,
        None if check.agreement is None else f"{check.agreement:.2%}",
        ", ".join(f"{value:.1f}" for value in check.snr_db),
        ", ".join(f"{value:.1f}" for value in check.simulated_db),
        "; ".join([*filter(None, [check.note]), *check.failures()]),
    )


def print_timing(timing: Timing, console: Console) -> None:
    """Both medians, the ratio with its spread, how it was measured, and the verdict in words."""
    for note in timing.notes:
        print_line(console, f"note      {note}")
    rows = [
        ("A", duration(timing.a_seconds), timing.a),
        ("B", duration(timing.b_seconds), timing.b),
    ]
    console.print(table("timing", ("", "median", "what"), rows))
    low, high = timing.quartiles
    print_line(
        console, f"B/A {timing.ratio:.3f}, half of the rounds between {low:.3f} and {high:.3f}"
    )
    threads = "" if timing.threads is None else f", threads: {timing.threads}"
    print_line(console, f"{timing.runtime}{threads}, inputs {timing.inputs}")
    print_line(
        console, f"{timing.rounds} rounds of 4 x {timing.calls} runs in {timing.seconds:.1f} s"
    )
    print_line(console, timing.verdict)
