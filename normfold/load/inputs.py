"""Choose example inputs and check them with one forward pass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normfold.errors import LoadError, UsageError
from normfold.ir.paths import named_leaves
from normfold.load import guess, probe
from normfold.load.nested import Axes, Call, bind, call, repeated, widened
from normfold.load.specs import Spec, draw_spec, is_mask, parse
from normfold.load.types import Found, Wanted

_FLOAT_TEXT = re.compile(r":(b?f16|f64)(?=\[|$)")


@dataclass(frozen=True)
class Asked:
    """What is known of the example inputs before they are chosen.

    Attributes:
        inputs: texts, or values in the order of ``forward`` (in any nest of tuples and dictionaries), or by name;
            or a function that gives arguments and keywords (or none) for the network.
        batch: first size of what is inferred; a given batch of one becomes this, unless ``static``.
        axes: dynamic axes that were named, by input.
        single: inputs of other float types become float32.
    """

    inputs: Any = ()
    batch: int = 2
    static: bool = False
    axes: Axes = field(default_factory=dict)
    single: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.single and not callable(self.inputs):
            object.__setattr__(self, "inputs", pytree.tree_map(_float32, self.inputs))


def _float32(value: Any) -> Any:
    """Values, and texts, of other float types as float32."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return _FLOAT_TEXT.sub(":f32", value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Chosen:
    """Arguments and keywords of a call, where they come from, notes, and axes that should stay free."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str
    notes: list[str] = field(default_factory=list)
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)


def choose(found: Found, asked: Asked) -> Chosen:
    """Example inputs that the network runs on.

    Raises:
        UsageError: an explicit input is malformed, misnamed, or does not fit the network.
        LoadError: nothing was given and nothing that was inferred works.
    """
    module, inputs = found.module, asked.inputs
    if callable(inputs):
        args, kwargs = inputs(module)
        if asked.single:
            args, kwargs = pytree.tree_map(_float32, (args, kwargs))
        if args or kwargs:
            chosen = ready(module, args, kwargs, asked)
            return replace(chosen, free=_free(found, asked, chosen))
        inputs = ()
    if isinstance(inputs, Mapping):
        return ready(module, (), dict(inputs), asked)
    texts = [isinstance(item, str) for item in inputs]
    if any(texts):
        if not all(texts):
            raise UsageError("inputs must be all values or all texts such as `x:1x3x224x224`")
        return _explicit(module, parse(inputs), asked)
    if inputs:
        return ready(module, tuple(inputs), {}, asked)
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
        return Chosen(args, kwargs, origin)
    return _infer(found, asked)


def ready(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], asked: Asked) -> Chosen:
    """Given values, with a batch of one repeated where the batch will be dynamic and the network takes it.

    Raises:
        UsageError: the network does not run on them.
    """
    if not asked.static:
        for more in repeated(module, args, kwargs, asked.batch, asked.axes):
            if probe.forward(module, *more) is None:
                return Chosen(*more, "the given tensors", [_repeated(asked.batch)])
    failure = probe.forward(module, args, kwargs)
    if failure is not None:
        leaves = pytree.tree_leaves((args, kwargs))
        shapes = ", ".join(
            "x".join(map(str, x.shape)) for x in leaves if isinstance(x, torch.Tensor)
        )
        raise _misfit(module, f"the given tensors ({shapes})", failure, (args, kwargs))
    return Chosen(args, kwargs, "the given tensors")


def _free(found: Found, asked: Asked, chosen: Chosen) -> dict[str, tuple[int, ...]]:
    """The axes of samples that the network is known to leave free, such as a length: they are longer or shorter
    elsewhere."""
    module = found.module
    try:
        first = next(guess.guesses(module, asked.batch, found.image_size, found.input_names), None)
    except LoadError:  # its inputs are not known
        first = None
    given = dict(named_leaves(module.forward, chosen.args, chosen.kwargs))
    made = {}
    for item in first.inputs if first is not None else ():
        value = given.get(item.name or "")
        if isinstance(value, torch.Tensor) and value.dim() == len(item.shape):
            axes = tuple(axis for axis in item.free if value.shape[axis] > 1)
            made.update({str(item.name): axes} if axes else {})
    return made


def _repeated(batch: int) -> str:
    return f"batch 1 became {batch}: a dynamic batch is captured at size {batch}"


def _misfit(module: nn.Module, what: str, failure: probe.Failure, given: Call) -> UsageError:
    return UsageError(
        f"the network does not run on {what}",
        where=failure.path,
        found=failure.message,
        hint=_other_type(module, given)
        or f"its signature is `{probe.signature(module)}`; "
        f"{_expected(module) or 'check the sizes and the dtype'}",
    )


def _other_type(module: nn.Module, given: Call) -> str:
    """What to say where the type alone is wrong: the network runs on the same values in that of its weights."""
    dtype = guess.float_dtype(module)
    for every in (False, True):

        def cast(value: torch.Tensor, every: bool = every) -> torch.Tensor:
            return value.to(dtype) if every or value.is_floating_point() else value

        if probe.forward(module, *pytree.tree_map_only(torch.Tensor, cast, given)) is None:
            return (
                f"the type is wrong: it runs on the same values in {dtype}, the type of its weights"
            )
    return ""


def _expected(module: nn.Module) -> str:
    try:
        first = next(guess.guesses(module, 2), None)
    except LoadError:  # its inputs are not known
        first = None
    if first is None:
        return ""
    texts = (_text(item.name, item.shape, item.high) for item in first.inputs)
    return f"from its {first.why}: `{' '.join(texts)}`"


def _text(name: str | None, shape: Sequence[int], high: int) -> str:
    head = f"{name}:" if name else ""
    return f"--input {head}{'x'.join(map(str, shape))}{':i64' if high else ''}"


def _explicit(module: nn.Module, specs: list[Spec], asked: Asked) -> Chosen:
    specs = bind(module, specs)
    said = " ".join(f"--input {spec.text}" for spec in specs)
    names, shapes = [spec.name for spec in specs], [spec.shape for spec in specs]
    choices = [] if asked.static else list(widened(shapes, names, asked.axes))
    attempts = [
        ([_wider(*pair, asked.batch) for pair in zip(specs, choice, strict=True)], True)
        for choice in choices
    ]
    first: probe.Failure | None = None
    for shaped, wider in (*attempts, (specs, False)):
        notes = []
        if wider:
            notes.append(_repeated(asked.batch))
        elif choices:
            notes.append("the network runs only with a first dimension of 1: kept as given")
        for tokens in (False, True):
            if tokens and all(spec.dtype is not None for spec in specs):
                continue
            for high in _highs(module, shaped, tokens):
                made = _finite(module, shaped, asked.seed, high, tokens)
                if not isinstance(made, probe.Failure):
                    more = ["the network wants tokens: inputs without a dtype are i64"] * tokens
                    return Chosen(*made, said, notes + more)
                first = first or made
    assert first is not None
    drawn = call(module, specs, _draw(module, specs, asked.seed, 2, False, True))
    raise _misfit(module, f"`{said}`", first, drawn)


def _wider(spec: Spec, axis: int | None, batch: int) -> Spec:
    if axis is None:
        return spec
    return replace(spec, shape=(*spec.shape[:axis], batch, *spec.shape[axis + 1 :]))


def _finite(
    module: nn.Module, specs: Sequence[Spec], seed: int, high: int, tokens: bool
) -> Call | probe.Failure:
    """Drawn arguments that the network runs on; of masks the sense in which its outputs are finite."""
    made: list[Call] = []
    for keeps in (True, False):
        values = _draw(module, specs, seed, high, tokens, keeps)
        made.append(call(module, specs, values))
        outcome = probe.run(module, *made[-1])
        if isinstance(outcome, probe.Failure):
            return outcome
        masked = any(is_mask(spec.name, x.dtype) for spec, x in zip(specs, values, strict=True))
        if not masked or probe.is_finite(outcome):
            return made[-1]
    return made[0]


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
    module: nn.Module, specs: Sequence[Spec], seed: int, high: int, tokens: bool, keeps: bool
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    default = torch.int64 if tokens else guess.float_dtype(module)
    device = _device(module)
    return [
        draw_spec(s, s.dtype or default, generator, high=high, device=device, keeps=keeps)
        for s in specs
    ]


def _device(module: nn.Module) -> torch.device | None:
    first = next(iter(module.parameters()), None)
    return first.device if first is not None and first.device.type != "meta" else None


def _spec(item: Wanted) -> Spec:
    """Integers below their own limit where the input is known by name; masks are drawn as such."""
    if item.name is None or not item.high or is_mask(item.name, torch.int64):
        return Spec(item.name, item.shape, torch.int64 if item.high else None)
    return Spec(item.name, item.shape, torch.int64, range=(0, item.high - 1))


def _infer(found: Found, asked: Asked) -> Chosen:
    module = found.module
    batch = 1 if asked.static else asked.batch
    tried: list[tuple[guess.Guess, probe.Failure]] = []
    for candidate in guess.guesses(module, batch, found.image_size, found.input_names):
        try:
            specs = bind(module, [_spec(item) for item in candidate.inputs])
        except UsageError:
            continue
        high = max(item.high for item in candidate.inputs)
        for limit in dict.fromkeys((high or 2, min(guess.vocabularies(module)))):
            made = _finite(module, specs, asked.seed, limit, False)
            if not isinstance(made, probe.Failure):
                free = {
                    item.name: item.free for item in candidate.inputs if item.name and item.free
                }
                return Chosen(*made, candidate.why, list(candidate.notes), free)
            tried.append((candidate, made))
            if not high:
                break
    raise _hopeless(module, tried)


def _hopeless(module: nn.Module, tried: list[tuple[guess.Guess, probe.Failure]]) -> LoadError:
    required = [
        p.name
        for p in probe.parameters(module)
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ] or ["x"]
    if tried and tried[0][0].inputs[0].name is not None:
        texts = [_text(item.name, item.shape, item.high) for item in tried[0][0].inputs]
        known = {item.name for item in tried[0][0].inputs}
        texts += [f"--input {name}:2x..." for name in required if name not in known | {"x"}]
    elif tried:
        shape = tried[0][0].inputs[0].shape
        kind = ":i64" if tried[0][0].inputs[0].high else ""
        texts = [f"--input {required[0]}:{'x'.join(map(str, shape))}{kind}"]
        texts += [f"--input {name}:2x..." for name in required[1:]]
    if tried:
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
