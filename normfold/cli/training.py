"""`normfold distill`: convert with everything that training can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normfold.cli import options as opt
from normfold.cli.show import emit, progress, warn_pickle


def distill(
    model: opt.Model,
    data: opt.RequiredData,
    to: Annotated[
        opt.Offline, typer.Option("--to", help="What takes the place of the LayerNorms.")
    ] = opt.Offline.prepbn,
    norms: opt.Norms = None,
    budget: opt.Budget = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export", metavar="onnx|pt2|trt", help="Format to write; repeatable. [default: onnx]"
        ),
    ] = None,
    output: opt.Output = Path("out"),
    steps: opt.Steps = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step, over all ranks.")] = 64,
    rate: opt.Rate = 1e-3,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the softmax that is compared.")] = 1.0,
    features: Annotated[
        float, typer.Option(help="Weight of the residual streams beside the outputs.")
    ] = 1.0,
    values: Annotated[
        bool,
        typer.Option("--values", help="Outputs are no class scores: compare their values."),
    ] = False,
    transition: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps over which the norms go from LayerNorm to what replaces it. "
            "[default: 0.5 for prepbn, else 0]"
        ),
    ] = None,
    stages: Annotated[
        int,
        typer.Option(
            min=0, help="In how many groups the norms take turns, front to back; 0: one at a time."
        ),
    ] = 1,
    hold_out: Annotated[
        float, typer.Option(help="Share of the samples that is only judged on.")
    ] = 0.1,
    evaluations: Annotated[int, typer.Option(min=1, help="Looks at the held-out samples.")] = 20,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many looks without a better student."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="At most so many samples of the data.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File to go on from after an interruption; written at every look."),
    ] = None,
    max_drop: opt.MaxDrop = None,
    metric: opt.Metric = None,
    factory: opt.Factory = None,
    inputs: opt.Inputs = None,
    trust_module: opt.TrustModule = None,
    trust_pickle: opt.TrustPickle = False,
    batch: opt.BatchOption = opt.Batch.dynamic,
    dynamic: opt.Dynamic = None,
    precision: opt.PrecisionOption = None,
    seed: opt.Seed = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every site.")] = False,
    as_json: opt.Json = False,
) -> int:
    """Replace LayerNorms, learn from the original, fold, judge and write."""
    import normfold
    from normfold.steps.train import Recipe, Training, rank_of_process

    warn_pickle(trust_pickle)
    recipe = Recipe(
        steps=steps,
        batch=batch_size,
        rate=rate,
        clip=clip,
        temperature=temperature,
        features=features,
        logits=not values,
        transition=transition,
        stages=stages,
        hold_out=hold_out,
        evaluations=evaluations,
        patience=patience,
        seed=seed,
    )
    training = Training(
        data,
        norms or (),
        budget,
        recipe,
        max_drop,
        metric,
        limit,
        trust_module or (),
        checkpoint,
    )
    with progress() as say:
        result = normfold.convert(
            model,
            to.value,
            export=export or "onnx",
            output=output,
            batch=batch.value,
            dynamic=dynamic or (),
            precision=precision.value if precision is not None else None,
            seed=seed,
            training=training,
            progress=say,
            **opt.loading(factory, inputs, trust_module, trust_pickle),
        )
    if rank_of_process() == 0:
        emit(result.report, as_json, verbose)
    return 0 if result.ok else 1
