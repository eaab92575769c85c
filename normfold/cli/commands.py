"""The commands: each parses, calls one facade function, prints and returns an exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from normfold.cli import options as opt
from normfold.cli.show import console, emit, progress, warn_pickle


def convert(
    model: opt.Model,
    to: opt.To = "folded",
    passes: opt.Passes = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="onnx|pt2|trt",
            help="Format to write; repeatable. [default: onnx]",
        ),
    ] = None,
    output: opt.Output = Path("out"),
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    dynamic: opt.Dynamic = None,
    verify: Annotated[
        opt.VerifyMode, typer.Option("--verify", help="When to judge the result.")
    ] = opt.VerifyMode.final,
    seed: opt.Seed = 0,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset; the dialect's own when not given.")
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="What the ONNX file is for: ort-x86, ort-arm, trt, trt-rtx.")
    ] = "ort-x86",
    keep_if_faster: Annotated[
        bool,
        typer.Option(
            "--keep-if-faster",
            help="Write the original's own export instead, unless the result is faster (onnxruntime, CPU).",
        ),
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="PASS>=N",
            help="Fail (exit 1) unless the pass rewrote so many sites; repeatable.",
        ),
    ] = None,
    untie: Annotated[
        bool,
        typer.Option("--untie", help="An embedding table that is also the head may be copied."),
    ] = False,
    precision: opt.PrecisionOption = None,
    keep_fp32: opt.KeepFp32 = None,
    half_budget: opt.HalfBudget = None,
    builder: opt.BuilderOption = opt.Builder.auto,
    gpu_arch: opt.GpuArch = None,
    workspace: opt.Workspace = None,
    timing_cache: opt.TimingCache = None,
    version_compatible: opt.VersionCompatible = False,
    hardware_compatible: opt.HardwareOption = opt.HardwareCompatibility.none,
    quantize: opt.Quantize = None,
    data: opt.Data = None,
    norms: opt.Norms = None,
    budget: opt.Budget = None,
    max_drop: opt.MaxDrop = None,
    metric: opt.Metric = None,
    steps: opt.Steps = None,
    rate: opt.Rate = 1e-3,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every site.")] = False,
    as_json: opt.Json = False,
) -> int:
    """Rewrite a trained network, prove it, and write it."""
    import normfold

    warn_pickle(trust_pickle)
    with progress() as say:
        result = normfold.convert(
            model,
            to,
            passes=passes,
            export=export or "onnx",
            output=output,
            batch=batch.value,
            dynamic=dynamic or (),
            verify=verify.value,
            seed=seed,
            opset=opset,
            dialect=dialect,
            keep_if_faster=keep_if_faster,
            require=require or (),
            untie=untie,
            precision=precision.value if precision is not None else None,
            keep_fp32=keep_fp32 or (),
            half_budget=half_budget,
            engine=opt.engine(
                builder,
                gpu_arch,
                workspace,
                timing_cache,
                version_compatible,
                hardware_compatible,
            ),
            training=opt.training(
                data if quantize is None or to in list(opt.Offline) else None,
                norms,
                budget,
                max_drop,
                metric,
                trust_module,
                steps,
                rate,
                seed,
            ),
            quantization=opt.quantization(quantize, data, trust_module, seed),
            progress=say,
            **opt.loading(factory, inputs, trust_module, trust_pickle),
        )
    emit(result.report, as_json, verbose)
    return 0 if result.ok else 1


def inspect(
    model: opt.Model,
    graph: Annotated[
        bool, typer.Option("--graph", help="Print the captured graph instead.")
    ] = False,
    spaces: Annotated[
        bool,
        typer.Option("--spaces", help="Print the feature spaces and their symmetries instead."),
    ] = False,
    passes: opt.Passes = None,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    as_json: opt.Json = False,
) -> int:
    """List every norm: path, kind, position, foldable or why not, float16 risk."""
    from normfold import inspection
    from normfold.report.text import table

    inspection.require_pipeline(passes)
    warn_pickle(trust_pickle)
    with progress() as say:
        captured = _capture(
            model, batch, say, **opt.loading(factory, inputs, trust_module, trust_pickle)
        )
        if graph:
            typer.echo(inspection.graph_text_after(captured, passes), nl=False)
            return 0
        rows = inspection.list_spaces(captured) if spaces else inspection.inspect(captured)
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


def plan(
    model: opt.Model,
    to: opt.To = "folded",
    passes: opt.Passes = None,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    as_json: opt.Json = False,
) -> int:
    """Say what a conversion would do to each site, and write nothing."""
    from normfold import inspection
    from normfold.report.text import print_legend, table

    inspection.require_pipeline(passes, to)
    warn_pickle(trust_pickle)
    with progress() as say:
        captured = _capture(
            model, batch, say, **opt.loading(factory, inputs, trust_module, trust_pickle)
        )
        report = inspection.plan(captured, passes, to)
    if as_json:
        typer.echo(report.to_json())
        return 0
    for item in report.passes:
        rows: list[tuple[Any, ...]] = [
            ("would apply", a.site, a.kind, a.detail) for a in item.applied if a.kind
        ]
        rows += [("declines", d.site, d.kind, f"{d.code} {d.place}") for d in item.declined]
        if rows:
            console().print(table(item.spec, ("", "site", "kind", "how, or why not"), rows))
    print_legend((d for item in report.passes for d in item.declined), console())
    return 0


def verify(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help=opt.MODEL_HELP)],
    result: Annotated[
        str, typer.Argument(metavar="RESULT", help="Another MODEL, or an .onnx file.")
    ],
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> int:
    """Judge whether one model computes what another computes."""
    import normfold
    from normfold.report import json_text
    from normfold.report.text import print_checks

    warn_pickle(trust_pickle)
    with progress() as say:
        say("comparing")
        check = normfold.verify(
            original,
            result,
            batch=batch.value,
            seed=seed,
            **opt.loading(factory, inputs, trust_module, trust_pickle),
        )
    if as_json:
        data = {
            **dataclasses.asdict(check),
            "ok": check.ok,
            "needed_tolerance": check.needed_tolerance,
        }
        typer.echo(json_text(data))
    else:
        print_checks([check], console())
        console().print(f"verdict: {'equivalent' if check.ok else 'NOT equivalent'}")
    return 0 if check.ok else 1


def bisect(
    model: opt.Model,
    to: opt.To = "folded",
    passes: opt.Passes = None,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> int:
    """Name the first pass, then the first site, that breaks the verdict."""
    from normfold import inspection
    from normfold.report import json_text
    from normfold.report.text import print_checks

    inspection.require_pipeline(passes, to)
    warn_pickle(trust_pickle)
    with progress() as say:
        captured = _capture(
            model, batch, say, **opt.loading(factory, inputs, trust_module, trust_pickle)
        )
        culprit = inspection.find_culprit(captured, passes, to, seed, say)
    if as_json:
        typer.echo(json_text(None if culprit is None else dataclasses.asdict(culprit)))
    elif culprit is None:
        typer.echo("every pass keeps the verdict")
    else:
        typer.echo(f"{culprit.spec}: {culprit.site or 'the pass as a whole'} {culprit.detail}")
        print_checks([culprit.after], console())
    return 0 if culprit is None else 1


def passes(as_json: opt.Json = False) -> int:
    """List the passes with what they promise, and the presets."""
    from normfold.cli import catalogue
    from normfold.report.text import table

    rows, presets = catalogue.list_passes()
    if as_json:
        typer.echo(json.dumps({"passes": rows, "presets": presets}, indent=2))
        return 0
    columns = ("name", "exactness", "options", "summary")
    console().print(table("passes", columns, [[row[column] for column in columns] for row in rows]))
    console().print(table("\npresets", ("name", "pipeline"), presets.items()))
    return 0


def explain(
    name: Annotated[
        str,
        typer.Argument(metavar="CODE|PASS", help="A reason code such as NF103, or a pass name."),
    ],
    as_json: opt.Json = False,
) -> int:
    """Say what a reason code means and what to do, or how a pass works."""
    from normfold.cli import catalogue

    text = catalogue.explain(name)
    typer.echo(json.dumps(text, indent=2) if as_json else "\n".join(text.values()))
    return 0


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Also try to capture this model.")
    ] = None,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    as_json: opt.Json = False,
) -> int:
    """Say what is installed and what is missing; with MODEL, list every obstacle to its capture."""
    from normfold import doctor as diagnosis
    from normfold.report.text import table

    warn_pickle(trust_pickle)
    found = diagnosis.environment()
    obstacles: list[str] = []
    if model is not None:
        with progress() as say:
            say("capturing with draft_export")
            obstacles = diagnosis.obstacles(
                model, **opt.loading(factory, inputs, trust_module, trust_pickle)
            )
    if as_json:
        typer.echo(json.dumps({"environment": found, "obstacles": obstacles}, indent=2))
    else:
        console().print(
            table(
                "environment",
                ("what", "version", "needed for"),
                [list(row.values()) for row in found],
            )
        )
        for line in obstacles:
            typer.echo(line)
        if model is not None and not obstacles:
            typer.echo("the model is captured without obstacles")
    return 4 if obstacles else 0


def _capture(model: str, batch: opt.Batch, say: Any, **loading: Any) -> Any:
    from normfold.api import capture_model

    say("loading and capturing")
    return capture_model(model, batch=batch.value, **loading)
