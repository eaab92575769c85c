"""A job: what to load, what to do, what to write, and what it must satisfy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.job.option import Option, given_options, options_of, same, unknown
from normfold.job.output import EngineOptions, Export, Request
from normfold.job.policy import Policy
from normfold.job.presets import KEEPS_GRIDS, trained
from normfold.job.rules import RULES, Facts
from normfold.job.source import Source
from normfold.job.steps import Cast, Quantize, Recalibrate, Rewrite, Step, Train
from normfold.target import TARGETS

GROUPS: tuple[type, ...] = (
    Source,
    Rewrite,
    Recalibrate,
    Train,
    Cast,
    Quantize,
    Export,
    Policy,
    EngineOptions,
)
# presets of one job: a command's own defaults, and the groups that it has nothing to do with
COMMANDS: dict[str, tuple[dict[str, Any], tuple[type, ...]]] = {
    "convert": ({}, ()),
    "distill": ({"to": "prepbn"}, (Quantize,)),
    "quantize": ({"quantize": "int8"}, (Train,)),
}
_MODEL = "network"  # `model` is the key of the factory, as `--model` is its flag


@dataclass(frozen=True)
class Job:
    """Source, steps, targets and policy. `Job.of` makes one from options."""

    source: Source
    steps: tuple[Step, ...] = ()
    export: Export = field(default_factory=Export)
    engine: EngineOptions = field(default_factory=EngineOptions)
    policy: Policy = field(default_factory=Policy)

    @classmethod
    def of(
        cls, given: Mapping[str, Any], command: str = "convert", whole: Sequence[Any] = ()
    ) -> Job:
        """The job that options ask for.

        Args:
            given: by field name, what differs from the defaults; ``model`` beside it.
            command: whose defaults are taken: ``convert``, ``distill`` or ``quantize``.
            whole: groups that are given as objects, such as a `Quantize`.

        Raises:
            UsageError: an unknown option, a wrong value, one that means nothing here, or two that contradict.
        """
        known = {item.keyword: item for item in all_options()}
        given = {**_flat(whole), **given}
        wanted = {**COMMANDS[command][0], **given}
        model = wanted.pop("model", None)
        parts: dict[type, dict[str, Any]] = {group: {} for group in GROUPS}
        for name, value in wanted.items():
            if name not in known:
                raise unknown(name, known)
            parts[known[name].owner][known[name].name] = value
        if parts[Rewrite].get("rotate") and not {"to", "passes"} & given.keys():
            parts[Rewrite]["to"] = "rmsnorm"
        elif parts[Quantize].get("scheme") == "lossless" and not {"to", "passes"} & given.keys():
            parts[Rewrite]["passes"] = KEEPS_GRIDS
        if parts[Quantize].get("activation_bits", 8) < 8:
            parts[Export].setdefault("export", ())
        rewrite = Rewrite(**parts[Rewrite])
        rewrite.pipeline  # noqa: B018  refuses an unknown preset
        steps: list[Step] = [rewrite]
        if rewrite.trained:
            steps.insert(0, replace(Train(**parts[Train]), to=rewrite.to))
        recalibrates = Recalibrate(**parts[Recalibrate])
        if recalibrates.method is not None:
            steps.insert(0, recalibrates)
        if parts[Quantize].get("scheme") == "fp8" and parts[Cast].get("precision") is None:
            parts[Cast]["precision"] = "fp16"
        if parts[Cast].get("precision") is not None:
            steps.append(Cast(**parts[Cast]))
        if parts[Quantize].get("scheme") is not None:
            steps.append(Quantize(**parts[Quantize]))
        _require_command(command, steps)
        source = replace(Source(**parts[Source]), model=model)
        job = cls(
            source,
            tuple(_completed(step, whole) for step in steps),
            Export(**parts[Export]),
            _completed(EngineOptions(**parts[EngineOptions]), whole),
            Policy(**parts[Policy]),
        )
        for pair in _EITHER:
            _require_one(given, [known[name] for name in pair])
        for name in given:
            if name != "model":
                job._require(known[name], given[name])
        job._require_consistent()
        return job

    def _step(self, kind: type) -> Any:
        return next((step for step in self.steps if isinstance(step, kind)), None)

    @property
    def rewrite(self) -> Rewrite | None:
        """The step of that kind, or None; so `train`, `cast` and `quantize`."""
        return self._step(Rewrite)  # type: ignore[no-any-return]

    @property
    def recalibrate(self) -> Recalibrate | None:
        return self._step(Recalibrate)  # type: ignore[no-any-return]

    @property
    def train(self) -> Train | None:
        return self._step(Train)  # type: ignore[no-any-return]

    @property
    def cast(self) -> Cast | None:
        return self._step(Cast)  # type: ignore[no-any-return]

    @property
    def quantize(self) -> Quantize | None:
        return self._step(Quantize)  # type: ignore[no-any-return]

    def _facts(self) -> Facts:
        """What rules ask for."""
        cast, requests = self.cast, self.export.requests
        return Facts(
            own=self.rewrite is not None and self.rewrite.passes is not None,
            bytes=self.source.uint8_input,
            recalibrates=None if self.recalibrate is None else self.recalibrate.method,
            trains=self.train is not None,
            stores=self.quantize is not None,
            quantizes=self.quantize is not None and not self.quantize.exact,
            int8=self.quantize is not None and self.quantize.scheme == "int8",
            ranged=self.quantize is not None and self.quantize.ranged,
            evidence=None if self.source.data is not None else self._evidence(),
            has_data=self.source.data is not None,
            has_inputs=self.source.has_inputs,
            half=cast is not None and cast.precision in ("fp16", "bf16"),
            judges=self.policy.verify != "off",
            formats=frozenset(self.export.export),
            times=any(
                item.format == "onnx" and item.target.runtime == "onnxruntime" for item in requests
            ),
        )

    def _evidence(self) -> str | None:
        """What ranges are found on, where they are needed."""
        made = self.quantize
        if made is None or not (made.ranged or made.correct_bias or made.migrate):
            return None
        return made.evidence

    def _require(self, item: Option, value: Any) -> None:
        """An option that was given must mean something."""
        rule = RULES[item.when or "always"]
        if not same(item.value(value), item.default) and not rule.holds(self._facts()):
            raise item.error(f"`{item.flags[0]}`: {rule.why}", hint=rule.hint)
        # what is on by itself, where a third state says so, is so for 8-bit activations
        if item.optional and value is False and not self._facts().int8:
            raise item.error(
                f"`--no-{item.key}`: only `--quantize int8` does that unasked", hint="leave it out"
            )

    def _require_consistent(self) -> None:
        requests = self.export.requests  # refuses an unknown target
        if self.train is not None and self.source.data is None:
            raise UsageError(
                f"`{self.train.to}` changes the function: the network must learn from its original, and there are "
                "no samples",
                hint="give `--data` (`data=` in Python): inputs as the network meets them, labels optional",
            )
        if self.recalibrate is not None and self.source.data is None:
            raise UsageError(
                "statistics are to be taken anew, and there are no samples",
                hint="give `--data` (`data=` in Python): inputs as the network will meet them",
            )
        if "module" in self.export.export and self.cast is not None:
            raise UsageError(
                f"`--export module` and `--precision {self.cast.precision}` contradict each other",
                hint="the module is written in its own types: change them in PyTorch (`module.half()`)",
            )
        integers = self.quantize
        if integers is None:
            return
        for request in requests or (Request("", self.export.first),):
            _require_kernels(integers, request)
        typed = [row.name for row in TARGETS.values() if row.builder]
        if self.cast is not None and any(not item.target.builder for item in requests):
            raise UsageError(
                f"`--precision {self.cast.precision}` and `--quantize {integers.scheme}` contradict each other",
                found=f"target {next(x.target.name for x in requests if not x.target.builder)}",
                hint="kernels for CPUs stand beside float32: leave one of them out; both are for "
                f"{' and '.join(f'`--target {name}`' for name in typed)}",
            )
        if requests and integers.activation_bits < 8:
            raise UsageError(
                "activations of fewer than 8 bits are simulated: no runtime executes them",
                hint="leave out `--export`",
            )

    def options(self) -> Iterator[tuple[Option, Any]]:
        """Every option that differs from its default, and its value, in the order of the help."""
        whole: list[Any] = [self.source, *self.steps, self.export, self.policy, self.engine]
        parts = {type(part): part for part in whole}
        for group in GROUPS:
            if group in parts:
                yield from given_options(parts[group])

    def to_toml(self) -> str:
        """The job as TOML, which `Job.from_toml` reads back: ``network``, and every option by its key.

        What only Python can give (tensors, arrays, pass objects without a name) stands there as a comment.
        """
        lines, group = [], ""
        if self.source.model is not None:
            lines.append(_line(_MODEL, self.source.model))
        for item, value in self.options():
            if item.group != group:
                group = item.group
                lines += ["", f"# {group}"]
            lines.append(_line(item.key, value))
        return "\n".join(lines).strip() + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Job:
        """The job of a text that `to_toml` wrote.

        Raises:
            UsageError: not TOML, or as `Job.of`.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError("the job is not valid TOML", found=str(error)) from error
        keys = {item.key: item.keyword for item in all_options()}
        for key in table:
            if key != _MODEL and key not in keys:
                raise unknown(key, keys)
        keys[_MODEL] = "model"
        return cls.of({keys[key]: value for key, value in table.items()})


def _require_kernels(step: Quantize, request: Request) -> None:
    """Refuse a scheme that a target has no kernels for."""
    row = request.target
    if row.grids is None:
        raise UsageError(
            f"integers are not written as {request.format or row.name}",
            hint="`--export onnx`, `openvino` or `trt`",
        )
    if step.scheme in row.schemes and (row.grids.by_layer or not step.mixed):
        return
    others = [x.name for x in TARGETS.values() if step.scheme in x.schemes and not step.mixed]
    takes = f"{row.runtime} takes {', '.join(f'`{x}`' for x in row.schemes)}"
    raise UsageError(
        f"`{step.scheme}`{' with formats by layer' if step.mixed else ''} is not for {row.runtime}",
        hint=f"{takes}; `{step.scheme}` is for {', '.join(f'`--target {x}`' for x in others)}"
        if others
        else takes,
    )


def _require_command(command: str, steps: Sequence[Step]) -> None:
    """Refuse a preset of a job that does not do what it is called after, or does what it has no options for."""
    kinds = {type(step) for step in steps}
    left_out = COMMANDS[command][1]
    if command == "distill" and Train not in kinds:
        raise UsageError(
            "nothing would be distilled: this conversion is exact",
            hint=f"`--to` {', '.join(trained())}; `normfold convert` does the others",
        )
    if kinds & set(left_out):
        raise UsageError(
            f"`normfold {command}` has no options for that",
            hint="`normfold convert` trains and quantises in one job",
        )


_EITHER = (
    ("to", "passes"),
    ("inputs", "inputs_from"),
    ("target_size", "target_latency"),
    ("weights", "target_size"),
    ("weights", "target_latency"),
    ("weights", "simulate"),
    ("simulate", "target_latency"),
)


def _require_one(given: Mapping[str, Any], items: Sequence[Option]) -> None:
    """Refuse two options of which one would be dropped."""
    values = [given.get(item.keyword, item.default) for item in items]
    if not any(
        value is None or value is False or same(value, item.default)
        for value, item in zip(values, items, strict=True)
    ):
        one, other = (f"`{item.flags[0]}`" for item in items)
        raise UsageError(f"{one} and {other} contradict each other", hint="leave one of them out")


def _flat(whole: Sequence[Any]) -> dict[str, Any]:
    """The options of groups that are given as objects."""
    found = {item.keyword: value for group in whole for item, value in given_options(group)}
    if any(isinstance(group, Quantize) for group in whole):
        found.setdefault("quantize", "int8")
    return found


def _completed(part: Any, whole: Sequence[Any]) -> Any:
    """A group with the fields that are not options, of the object that it was given as."""
    for group in whole:
        if type(group) is type(part):
            plain = [f.name for f in fields(group) if "option" not in f.metadata and f.name != "to"]
            return replace(part, **{name: getattr(group, name) for name in plain})
    return part


def all_options() -> list[Option]:
    """Every option of a job, in the order of the help."""
    return [item for group in GROUPS for item in options_of(group)]


def _line(key: str, value: Any) -> str:
    text = _toml(value)
    return (
        f"{key} = {text}" if text is not None else f"# {key}: {_described(value)}, given in Python"
    )


def _toml(value: Any) -> str | None:
    """A value as TOML, or None where TOML has no word for it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'
    if isinstance(value, (tuple, list)):
        parts = [_toml(item) for item in value]
        if all(part is not None for part in parts):
            return f"[{', '.join(part for part in parts if part is not None)}]"
        if all(hasattr(item, "exactness") for item in value):  # passes print as pipeline text
            return _toml(",".join(map(str, value)))
    return None


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"
