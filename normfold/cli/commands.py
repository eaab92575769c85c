"""What each command does: call one facade function, print, return an exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any

import typer

from normfold.cli.local import Bench, Checking
from normfold.cli.show import console, emit, progress, warn_pickle
from normfold.errors import ExportError, UsageError
from normfold.files import require_writable, write_text
from normfold.job import Source, options_of

Given = dict[str, Any]


def run_job(command: str, given: Given) -> int:
    """`convert`, `distill` and `quantize`: presets of one job."""
    from normfold.job import Job

    as_json, verbose = given.pop("as_json", False), given.pop("verbose", False)
    job = Job.of(given, command)
    warn_pickle(given)
    with progress() as say:
        import normfold

        result = normfold.execute(job, say)
    if os.environ.get("RANK", "0") == "0":  # of torchrun
        emit(result.report, as_json, verbose)
    return result.report.exit_code


def inspect(given: Given) -> int:
    from normfold.report.table import table

    as_json, passes = given.pop("as_json", False), given.pop("passes", None)
    graph, spaces = given.pop("graph", False), given.pop("spaces", False)
    if graph and (spaces or as_json):
        other = "--spaces" if spaces else "--json"
        raise UsageError(
            f"`--graph` and `{other}` contradict each other", hint="leave one of them out"
        )
    warn_pickle(given)
    with progress() as say:
        from normfold import inspection

        inspection.require_pipeline(passes)
        captured = _capture(given, say)
        if graph:
            typer.echo(inspection.graph_text_after(captured, passes), nl=False)
            return 0
        rows = inspection.list_spaces(captured, passes) if spaces else inspection.inspect(captured)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    title = f"{len(rows)} {'feature spaces' if spaces else 'norms'}"
    fields = dataclasses.fields(rows[0]) if rows else ()
    columns = [field.name for field in fields if field.name != "line"]  # too wide for a terminal
    cells = [[_cell(getattr(row, column)) for column in columns] for row in rows]
    console().print(table(title, [column.replace("_", " ") for column in columns], cells))
    return 0


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def plan(given: Given) -> int:
    from normfold.passes import BUILT_IN
    from normfold.report.table import table
    from normfold.report.text import print_legend

    as_json, to, passes = _json_to_passes(given)
    warn_pickle(given)
    with progress() as say:
        from normfold import inspection

        inspection.require_pipeline(passes, to)
        report = inspection.plan(_capture(given, say), passes, to)
    if as_json:
        typer.echo(report.to_json())
        return 0
    for item in report.passes:
        rows: list[tuple[Any, ...]] = [
            ("would apply", a.site, a.kind, a.detail)
            for a in item.applied
            if a.kind or item.name not in BUILT_IN
        ]
        rows += [("declines", d.site, d.kind, f"{d.code} {d.place}") for d in item.declined]
        if rows:
            console().print(table(item.spec, ("", "site", "kind", "how, or why not"), rows))
    print_legend((d for item in report.passes for d in item.declined), console())
    return 0


def verify(given: Given) -> int:
    from normfold.report import json_text
    from normfold.report.text import print_checks, print_layers

    as_json, wanted = given.pop("as_json", False), given.pop("layers", False)
    budgets = [given[name] for name in ("half_budget", "max_error") if name in given]
    warn_pickle(given)
    layers = None
    with progress() as say:
        import normfold
        from normfold.progress import Progress

        say(Progress("comparing"))
        original, result = given.pop("original"), given.pop("result")
        check = normfold.verify(original, result, **given)
        if wanted:
            say(Progress("comparing layers"))
            for name in ("tries", "half_budget", "max_error"):
                given.pop(name, None)
            try:
                layers = normfold.layers(original, result, **given)
            except ExportError as error:  # the verdict stands without them
                note = f"layers were not compared: {error.found or error.what}"
                check = dataclasses.replace(check, note="; ".join(filter(None, [check.note, note])))
    if as_json:
        data = {
            **dataclasses.asdict(check),
            "ok": check.ok,
            "needed_tolerance": check.needed_tolerance,
            **({} if layers is None else {"layers": dataclasses.asdict(layers)}),
        }
        typer.echo(json_text(data))
    else:
        if layers is not None:
            print_layers(layers, console())
        print_checks([check], console())
        console().print(f"verdict: {_compared(check.ok, budgets)}")
    return 0 if check.ok else 1


def _compared(ok: bool, budgets: list[float]) -> str:
    """Two models in words: by what both may differ, where they need not be equivalent."""
    what = f"within {sum(budgets):g} of the original" if budgets else "equivalent"
    return what if ok else f"NOT {what}"


def bisect(given: Given) -> int:
    from normfold.report import json_text
    from normfold.report.table import print_line
    from normfold.report.text import print_certificate, print_checks

    as_json, to, passes = _json_to_passes(given)
    warn_pickle(given)
    own = {
        name: given.pop(name, None) for name in ("file", "reproducer", "max_error", "half_budget")
    }
    with progress() as say:
        from normfold import inspection
        from normfold.progress import Progress

        inspection.require_pipeline(passes, to)
        tries = given.pop("tries", ())
        say(Progress("loading and capturing"))
        culprit = inspection.find_culprit(Source.of(given), passes, to, say, tries=tries, **own)
    if as_json:
        typer.echo(json_text(None if culprit is None else culprit.to_dict()))
    elif culprit is None:
        also = "" if own["file"] is None else f", and so does {own['file']}"
        typer.echo(f"every pass keeps the verdict{also}")
    else:
        typer.echo(culprit.words)
        if culprit.layer is not None:
            print_line(console(), f"layer     {culprit.layer.words}")
        print_checks([culprit.after], console())
        if culprit.certificate is not None:
            print_certificate(culprit.certificate, console())
        if culprit.no_reproducer:
            print_line(console(), f"no part written: {culprit.no_reproducer}")
        elif own["reproducer"] is not None:
            print_line(console(), f"wrote {own['reproducer']}: the smallest part that fails")
    return 0 if culprit is None else 1


def init(given: Given) -> int:
    import tomllib

    from normfold.cli.settings import MODELS

    output = Path(given.pop("output", "normfold.toml"))
    require_writable(output.parent)
    if output.suffix != ".toml" or output.name == "pyproject.toml":
        raise UsageError(
            "the configuration is a TOML file of its own",
            where=str(output),
            hint="`-o normfold.toml`; of pyproject.toml `[tool.normfold.models.NAME]` is read, too",
        )
    before = ""
    try:
        before = output.read_text(encoding="utf-8") if output.exists() else ""
        known = tomllib.loads(before).get(MODELS, {})
    except (OSError, ValueError) as error:
        raise UsageError(
            "the configuration cannot be added to", where=str(output), found=str(error)[:200]
        ) from error
    warn_pickle(given)
    with progress() as say:
        from normfold.init import HEAD, table

        name, text = table(given, output.parent, say)
    if name in known:
        raise UsageError(
            f"there is a model `{name}` already", where=str(output), hint="edit its table"
        )
    head = f"{before.rstrip()}\n" if before.strip() else HEAD.format(name=output.name)
    write_text(output, f"{head}\n{text}")
    again = shlex.join(["normfold", "check", "--config", str(output), "--update"])
    typer.echo(f"wrote {output}: next, `{again}`")
    return 0


def check(given: Given) -> int:
    from normfold.cli.gate import check

    as_json = given.pop("as_json", False)
    return check(Checking(**{name: x for name, x in given.items() if name != "config"}), as_json)


def report(given: Given) -> int:
    from normfold.report.markdown import markdown
    from normfold.report.rendering import render_file, rendering

    output = given.get("output")
    render = markdown if output is None else rendering(output)
    text = render_file(Path(given["file"]), render)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"wrote {output}")
    return 0


def passes(given: Given) -> int:
    from normfold.cli import catalogue
    from normfold.report.table import table

    rows, presets = catalogue.list_passes()
    if given.get("as_json"):
        typer.echo(json.dumps({"passes": rows, "presets": presets}, indent=2))
        return 0
    columns = ("name", "exactness", "options", "summary")
    console().print(table("passes", columns, [[row[column] for column in columns] for row in rows]))
    console().print(table("\npresets", ("name", "pipeline"), presets.items()))
    return 0


def explain(given: Given) -> int:
    from normfold.cli import catalogue

    text = catalogue.explain(given["name"])
    typer.echo(json.dumps(text, indent=2) if given.get("as_json") else "\n".join(text.values()))
    return 0


def doctor(given: Given) -> int:
    from normfold.report.table import table

    as_json, model = given.pop("as_json", False), given.pop("model", None)
    warn_pickle(given)
    obstacles: list[str] = []
    with progress() as say:
        from normfold import inspection
        from normfold.progress import Progress

        found = [*inspection.environment(), _confinement()]
        if model is not None:
            say(Progress("capturing with draft_export"))
            obstacles = inspection.obstacles(Source.of({"model": model, **given}))
    if as_json:
        typer.echo(json.dumps({"environment": found, "obstacles": obstacles}, indent=2))
    else:
        columns, cells = ("what", "version", "needed for"), [list(row.values()) for row in found]
        console().print(table("environment", columns, cells))
        for line in obstacles:
            typer.echo(line)
        if model is not None and not obstacles:
            typer.echo("the model is captured without obstacles")
    return 4 if obstacles else 0


def _confinement() -> dict[str, str]:
    from normfold.job import confinement

    missing = confinement.lacks()
    found = f"no {', no '.join(missing)}" if missing else "Landlock and seccomp"
    purpose = "commands that open a file give up writing elsewhere, starting programs, connections"
    return {"what": "confinement", "version": found, "needed for": purpose}


def bench(given: Given) -> int:
    from normfold.report import json_text
    from normfold.report.text import print_timing

    as_json = given.pop("as_json", False)
    names = {item.name for item in options_of(Bench)}
    Bench(**{name: value for name, value in given.items() if name in names})  # refuses wrong values
    warn_pickle(given)
    with progress() as say:
        import normfold

        timing = normfold.bench(given.pop("a"), given.pop("b"), say=say, **given)
    if as_json:
        typer.echo(json_text(timing.to_dict()))
    else:
        print_timing(timing, console())
    return 0


def _json_to_passes(given: Given) -> tuple[bool, str, str | None]:
    return given.pop("as_json", False), given.pop("to", "folded"), given.pop("passes", None)


def _capture(given: Given, say: Any) -> Any:
    from normfold.inspection import capture_source
    from normfold.progress import Progress

    say(Progress("loading and capturing"))
    return capture_source(Source.of(given))
