"""Choose example inputs and check them with one forward pass."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from normfold.errors import LoadError, UsageError
from normfold.load import guess, probe
from normfold.load.specs import Spec, draw, parse
from normfold.load.types import Found

Chosen = tuple[tuple[Any, ...], dict[str, Any], str, list[str]]


def choose(
    found: Found, inputs: Sequence[str] | Sequence[torch.Tensor], batch: int, seed: int
) -> Chosen:
    """Positional and keyword inputs, what they come from, and notes.

    Raises:
        UsageError: an explicit input is malformed, misnamed, or does not fit the network.
        LoadError: nothing was given and nothing that was inferred works.
    """
    module = found.module
    if inputs and all(isinstance(item, torch.Tensor) for item in inputs):
        return _ready(module, tuple(inputs))
    if inputs and all(isinstance(item, str) for item in inputs):
        return _explicit(module, parse(cast("Sequence[str]", inputs)), batch, seed)
    if inputs:
        raise UsageError("inputs must be all tensors or all texts such as `x:1x3x224x224`")
    if found.inputs is not None:
        args, kwargs, origin = found.inputs
        failure = probe.forward(module, args, kwargs)
        if failure is not None:
            raise LoadError(
                f"the network does not run on the inputs from {origin}",
                where=failure.path,
                found=failure.message,
                hint="give others with `--input`",
            )
        return args, kwargs, origin, []
    return _infer(found, batch, seed)


def _ready(module: nn.Module, args: tuple[Any, ...]) -> Chosen:
    failure = probe.forward(module, args, {})
    if failure is not None:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in args)
        raise _misfit(module, f"the given tensors ({shapes})", failure)
    return args, {}, "the given tensors", []


def _misfit(module: nn.Module, what: str, failure: probe.Failure) -> UsageError:
    return UsageError(
        f"the network does not run on {what}",
        where=failure.path,
        found=failure.message,
        hint=f"its signature is `{probe.signature(module)}`; "
        f"{_expected(module) or 'check the sizes and the dtype'}",
    )


def _expected(module: nn.Module) -> str:
    first = next(guess.guesses(module, 2), None)
    if first is None:
        return ""
    texts = (_text(item.name, item.shape, item.high) for item in first.inputs)
    return f"from its {first.why}: `{' '.join(texts)}`"


def _text(name: str | None, shape: Sequence[int], high: int) -> str:
    head = f"{name}:" if name else ""
    return f"--input {head}{'x'.join(map(str, shape))}{':i64' if high else ''}"


def _explicit(module: nn.Module, specs: list[Spec], batch: int, seed: int) -> Chosen:
    names = _bind(module, specs)
    widened = [
        Spec(s.name, (batch, *s.shape[1:]), s.dtype, s.text) if s.shape[0] == 1 else s
        for s in specs
    ]
    said = " ".join(f"--input {spec.text}" for spec in specs)
    first: probe.Failure | None = None
    for shaped in (widened, specs) if widened != specs else (specs,):
        notes = []
        if shaped is widened and widened != specs:
            notes.append(f"batch 1 became {batch}: a dynamic batch is captured at size {batch}")
        elif widened != specs:
            notes.append("the network runs only with a first dimension of 1: kept as given")
        for tokens in (False, True):
            if tokens and all(spec.dtype is not None for spec in specs):
                continue
            for high in _highs(module, shaped, tokens):
                values = _draw(module, shaped, seed, high, tokens)
                args, kwargs = _split(module, names, values)
                failure = probe.forward(module, args, kwargs)
                if failure is None:
                    more = ["the network wants tokens: inputs without a dtype are i64"] * tokens
                    return args, kwargs, said, notes + more
                first = first or failure
    assert first is not None
    raise _misfit(module, f"`{said}`", first)


def _highs(module: nn.Module, specs: list[Spec], tokens: bool) -> tuple[int, ...]:
    integers = tokens or any(s.dtype in (torch.int32, torch.int64) for s in specs)
    if not integers:
        return (2,)
    if tokens and not any(isinstance(m, nn.Embedding) for m in module.modules()):
        return ()
    vocabulary = getattr(getattr(module, "config", None), "vocab_size", None)
    known = (vocabulary,) if isinstance(vocabulary, int) and vocabulary > 0 else ()
    return tuple(dict.fromkeys((*known, *guess.vocabularies(module))))


def _draw(
    module: nn.Module, specs: list[Spec], seed: int, high: int, tokens: bool
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    default = torch.int64 if tokens else guess.float_dtype(module)
    device = _device(module)
    return [draw(s.shape, s.dtype or default, generator, high=high, device=device) for s in specs]


def _device(module: nn.Module) -> torch.device | None:
    first = next(iter(module.parameters()), None)
    return first.device if first is not None and first.device.type != "meta" else None


def _bind(module: nn.Module, specs: list[Spec]) -> list[str | None]:
    """The parameter name of each spec; None where only the position is known."""
    known = probe.parameters(module)
    kinds = {p.kind for p in known}
    names = [p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    listed = ", ".join(f"`{name}`" for name in names) or "none"
    open_keywords = not known or inspect.Parameter.VAR_KEYWORD in kinds
    for spec in specs:
        if spec.name is not None and spec.name not in names and not open_keywords:
            close = difflib.get_close_matches(spec.name, names, n=1, cutoff=0.6)
            raise UsageError(
                f"`--input {spec.text}`: the network has no input `{spec.name}`",
                found=f"its parameters are {listed}",
                hint=f"did you mean `{close[0]}`?" if close else "the name may be left out",
            )
    free = [name for name in free if name not in {spec.name for spec in specs}]
    bound: list[str | None] = []
    for spec in specs:
        bound.append(spec.name or (free.pop(0) if free else None))
    if None in bound and known and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UsageError(
            f"{len(specs)} inputs are given, the network takes {len(names)}",
            found=f"its parameters are {listed}",
        )
    return bound


def _split(
    module: nn.Module, names: list[str | None], values: list[torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = dict(zip(names, values, strict=True))
    args: list[Any] = []
    for parameter in probe.parameters(module):
        if parameter.kind == parameter.KEYWORD_ONLY or parameter.name not in given:
            break
        args.append(given.pop(parameter.name))
    loose = [value for name, value in zip(names, values, strict=True) if name is None]
    return (*args, *loose), {name: v for name, v in given.items() if name is not None}


def _infer(found: Found, batch: int, seed: int) -> Chosen:
    module = found.module
    tried: list[tuple[guess.Guess, probe.Failure]] = []
    for candidate in guess.guesses(module, batch, found.image_size, found.input_names):
        specs = [
            Spec(item.name, item.shape, torch.int64 if item.high else None)
            for item in candidate.inputs
        ]
        high = max(item.high for item in candidate.inputs)
        try:
            names = _bind(module, specs)
        except UsageError:
            continue
        for limit in dict.fromkeys((high or 2, min(guess.vocabularies(module)))):
            args, kwargs = _split(module, names, _draw(module, specs, seed, limit, False))
            failure = probe.forward(module, args, kwargs)
            if failure is None:
                return args, kwargs, candidate.why, list(candidate.notes)
            tried.append((candidate, failure))
            if not high:
                break
    raise _hopeless(module, tried)


def _hopeless(module: nn.Module, tried: list[tuple[guess.Guess, probe.Failure]]) -> LoadError:
    required = [
        p.name
        for p in probe.parameters(module)
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ] or ["x"]
    if tried:
        shape = tried[0][0].inputs[0].shape
        kind = ":i64" if tried[0][0].inputs[0].high else ""
        texts = [f"--input {required[0]}:{'x'.join(map(str, shape))}{kind}"]
        texts += [f"--input {name}:2x..." for name in required[1:]]
        last = tried[0][1]
        found = f"tried {len(tried)}: with {tried[0][0].why} `{last.path}` said {last.message}"
    else:
        texts = [f"--input {name}:2x3x224x224" for name in required]
        found = "no layer that tells the size of the input"
    return LoadError(
        "no example inputs could be inferred that the network runs on",
        where=f"{type(module).__name__}.{probe.signature(module)}",
        found=found,
        hint=f"give them, for example `{' '.join(texts)}`",
    )
