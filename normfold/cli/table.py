"""The table of commands: their arguments, options and examples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from normfold.cli import commands
from normfold.cli.command import Argument, Command, Given
from normfold.cli.local import (
    Begun,
    Bench,
    Budgets,
    Checking,
    Comparison,
    Configured,
    Fault,
    Inspection,
    Printing,
    Rendered,
)
from normfold.job import COMMANDS, GROUPS, MODEL_HELP, Option, Policy, Rewrite, Source, options_of

_MODEL = Argument("model", "MODEL", MODEL_HELP)
_JSON = [
    *options_of(Configured),
    *(item for item in options_of(Printing) if item.name == "as_json"),
]


def _job(name: str, help: str, *examples: str) -> Command:
    """A preset of a job: every group of options that means something in it."""
    left_out = COMMANDS[name][1]
    options = [item for group in GROUPS if group not in left_out for item in options_of(group)]
    own = [*options, *options_of(Configured), *options_of(Printing)]
    return Command(
        name, help, partial(commands.run_job, name), [_MODEL], own, examples, why_not=_why_not
    )


def _some(owner: type, *names: str) -> list[Option]:
    return [item for item in options_of(owner) if item.name in names]


def _why_not(given: Given) -> str | None:
    """Why a call cannot, or need not, be confined."""
    if given.get("compiled"):
        return "`--compile` starts a compiler"
    models = [
        str(given.get(name, "")) for name in ("model", "original", "result", "file", "a", "b")
    ]
    read = (*models, *(str(given.get(name, "")) for name in ("data", "checkpoint")))
    if any(text and Path(text).exists() for text in read):
        return None
    if any(text.startswith("timm:") and "pretrained" in text for text in models):
        return "`pretrained` downloads weights"
    return "no file is read, only code that you named"


_CAPTURE = list(options_of(Source))
_TRY = _some(Policy, "tries")
_BUDGETS = list(options_of(Budgets))
_WHAT = _some(Rewrite, "to", "passes")
_ONE: Sequence[Argument] = [_MODEL]

TABLE = (
    _job(
        "convert",
        "Rewrite a trained network, prove it, and write it.",
        "normfold convert model.pt --trust-module mypkg --to rmsnorm -o out/",
        "normfold convert timm:vit_tiny_patch16_224 --export trt --precision fp16",
    ),
    _job(
        "distill",
        "Replace LayerNorms, learn from the original, fold, judge and write.",
        "normfold distill model.pt --data samples.npz --max-drop 1",
        "normfold distill model.pt --to affine --data pkg.mod:loader --steps 2000",
    ),
    _job(
        "quantize",
        "Fold a trained network, find its ranges without data, and write what integer kernels run.",
        "normfold quantize model.pt --target ort-x86 -o out/",
        "normfold quantize gpt2/ --scheme int4-weights",
    ),
    Command(
        "inspect",
        "List every norm: path, kind, position, foldable or why not, float16 risk.",
        commands.inspect,
        _ONE,
        [*options_of(Inspection), *_some(Rewrite, "passes"), *_CAPTURE, *_JSON],
        (
            "normfold inspect timm:resnet18",
            "normfold inspect model.pt --graph --passes canonicalize",
        ),
        why_not=_why_not,
    ),
    Command(
        "plan",
        "Say what a conversion would do to each site, and write nothing.",
        commands.plan,
        _ONE,
        [*_WHAT, *_CAPTURE, *_JSON],
        (
            "normfold plan gpt2/ --to rmsnorm",
            "normfold plan model.pt --passes canonicalize,fold-affine",
        ),
        why_not=_why_not,
    ),
    Command(
        "verify",
        "Judge whether one model computes what another computes.",
        commands.verify,
        [
            Argument("original", "ORIGINAL", MODEL_HELP),
            Argument("result", "RESULT", "Another MODEL, an .onnx file, or OpenVINO's .xml."),
        ],
        [*options_of(Comparison), *_CAPTURE, *_TRY, *_BUDGETS, *_JSON],
        (
            "normfold verify model.pt out/model.onnx --layers",
            "normfold verify timm:resnet18 out/resnet18.pt2",
        ),
        why_not=_why_not,
    ),
    Command(
        "bisect",
        "Name the first pass, the first site and the first layer that break the verdict.",
        commands.bisect,
        [
            _MODEL,
            Argument("file", "[FILE]", "Its .onnx file; without one it is made.", optional=True),
        ],
        [*_WHAT, *options_of(Fault), *_CAPTURE, *_TRY, *_BUDGETS, *_JSON],
        (
            "normfold bisect model.pt --to rmsnorm",
            "normfold bisect model.pt out/model.onnx --reproducer fault/",
            "normfold bisect model.pt --passes my-pass",
        ),
        why_not=_why_not,
    ),
    Command(
        "init",
        "Write a commented normfold.toml for a model, with requirements that hold today.",
        commands.init,
        _ONE,
        [*options_of(Begun), *_some(Rewrite, "to"), *_CAPTURE, *options_of(Configured)],
        (
            "normfold init model.pt --trust-module mypkg",
            "normfold init timm:vit_tiny_patch16_224 --to rmsnorm",
        ),
        why_not=_why_not,
    ),
    Command(
        "check",
        "Convert and judge the models of --config, or of normfold.toml here; the worst exit code counts.",
        commands.check,
        [],
        [*options_of(Checking), *_JSON],
        (
            "normfold check --config normfold.toml",
            "normfold check --config normfold.toml --report report.junit.xml --report report.sarif",
        ),
        opens=False,
    ),
    Command(
        "report",
        "Write the report of a run again: as HTML, JUnit, SARIF, Markdown or JSON, by the suffix of the file.",
        commands.report,
        [
            Argument(
                "file", "FILE", "NAME.report.json of a run, or the error that it printed as JSON."
            )
        ],
        [*options_of(Rendered), *options_of(Configured)],
        (
            "normfold report out/model.report.json -o model.junit.xml",
            "normfold report out/model.report.json -o model.sarif",
        ),
        opens=False,
    ),
    Command(
        "passes",
        "List the passes with what they promise, and the presets.",
        commands.passes,
        [],
        _JSON,
        ("normfold passes", "normfold passes --json"),
        opens=False,
    ),
    Command(
        "explain",
        "Say what a reason code means and what to do, or how a pass works.",
        commands.explain,
        [Argument("name", "CODE|PASS", "A reason code such as NF103, or a pass name.")],
        _JSON,
        ("normfold explain NF105", "normfold explain fold-affine"),
        opens=False,
    ),
    Command(
        "doctor",
        "Say what is installed and what is missing; with MODEL, list every obstacle to its capture.",
        commands.doctor,
        [Argument("model", "[MODEL]", "Also try to capture this model.", optional=True)],
        [*_CAPTURE, *_JSON],
        ("normfold doctor", "normfold doctor model.pt --trust-module mypkg"),
        why_not=_why_not,
    ),
    Command(
        "bench",
        "Time two networks in turn on this machine, and say whether one is faster.",
        commands.bench,
        [
            Argument("a", "A", "An .onnx or .engine file, or any MODEL."),
            Argument("b", "B", "The other: a file, or any MODEL."),
        ],
        [*options_of(Bench), *(item for item in _CAPTURE if item.name != "batch"), *_JSON],
        ("normfold bench before.onnx after.onnx", "normfold bench a.engine b.engine --runtime trt"),
        why_not=_why_not,
    ),
)
