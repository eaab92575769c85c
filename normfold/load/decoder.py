"""Decoders of transformers with their cache of keys and values as inputs and outputs.

``forward(input_ids, attention_mask, past_key_values)`` computes the logits of the new tokens and the keys and
values of all tokens so far. With ``batch`` rows, ``past`` tokens in the cache and ``new`` tokens:

    input_ids                  (batch, new)                    token ids
    attention_mask             (batch, past + new)             1 at tokens, 0 at padding
    past_key_values.0.key      (batch, heads, past, features)  of layer 0; so `.value`, and all layers
    logits                     (batch, new, vocabulary)
    present.0.key              (batch, heads, past + new, features)

The first step has ``past`` 0 and the prompt as new tokens. The names are those of Hugging Face's optimum.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import LoadError, last_line
from normfold.ir.fresh import fresh, with_forward
from normfold.ir.paths import bind, input_names
from normfold.load.exportable import write_experts
from normfold.load.nested import Call
from normfold.load.types import Found

_PAST, _NEW = 6, 3  # of the example: different, and larger than 1, which torch.export fixes
_ARGUMENTS = ("input_ids", "attention_mask", "past_key_values")
_OTHER_STATES = ("cache_params", "state", "mems", "past_buckets_states")
_WHO_CAN = (
    "decoders of transformers whose layers keep keys and values of every token can: GPT-2, OPT, Llama, Mistral, "
    "Qwen, Gemma, Phi and others; leave out `--task` to convert the network without a cache"
)
_ONE_WAY = '`"is_decoder": true`'
Pairs = Sequence[dict[str, Tensor]]


def with_cache(found: Found, batch: int, seed: int) -> Found:
    """The same network with its cache as inputs and outputs, and example inputs for it of ``batch`` rows.

    Raises:
        LoadError: the network keeps another state than keys and values of every token, or none.
    """
    module: Any = found.module
    own = type(module)
    warnings = [*_require_cache(found), *write_experts(module)]
    copy: Any = with_forward(module, _forward(own))
    if copy is module:
        raise _refused(found, "it cannot be copied, and would be changed")
    generator = torch.Generator().manual_seed(seed)
    try:
        empty = _empty(copy, batch)
        _require_same_in_steps(found, copy, empty, generator)
    except LoadError:
        raise
    except Exception as error:  # anything that a network can raise
        said = f"it does not run with a cache: {last_line(error)}"
        raise _refused(found, said, _one_way(module.config)) from error
    past, new = _lengths(module.config)
    said = f"{len(empty)} layers of keys and values are inputs and outputs"
    notes = [f"`text-generation-with-past`: {said}", *warnings]
    inputs = _inputs(copy, empty, batch, past, new, generator)
    axes = {name: _free_axes(name) for name in input_names(copy.forward, inputs, {})}
    return Found(
        copy,
        found.source,
        [*found.notes, *notes],
        (inputs, {}, "the shapes of its cache"),
        axes=axes,
    )


def trials(module: nn.Module, args: Any, kwargs: Any, static: bool, seed: int) -> list[Call]:
    """Calls as they occur in generation, besides the example: a padded prompt on an empty cache, and one token.

    Where the batch is static they have that of the example.
    """
    given = bind(module.forward, args, kwargs)
    pairs, batch = _pairs(given["past_key_values"]), len(given["input_ids"])
    empty = [{name: x[:1, :, :0] for name, x in pair.items()} for pair in pairs]
    past, new = _lengths(module.config)
    generator = torch.Generator().manual_seed(seed)
    sizes = ((batch if static else 3, 0, new + 1), (batch if static else 1, past - 1, 1))
    return [(_inputs(module, empty, *size, generator), {}) for size in sizes]


def _forward(own: Any) -> Any:
    by_position = "position_ids" in _parameters(own)

    def forward(self: Any, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any) -> Any:
        pairs = _pairs(past_key_values)
        past = pairs[0]["key"].shape[2]
        # said before anything is computed, for torch.export to know each size as one of these three
        _require(
            attention_mask.shape[1] == past + input_ids.shape[1],
            "`attention_mask` is not past + new long",
        )
        for tensor in (attention_mask, *(x for pair in pairs for x in pair.values())):
            _require(tensor.shape[0] == input_ids.shape[0], "inputs differ in their batch")
        for tensor in (x for pair in pairs for x in pair.values()):
            _require(tensor.shape[2] == past, "layers of the cache differ in their length")
        cache = _cache(pairs)
        # rows of new memory: torch.export would ask of a slice whether it is the whole, and fix the answer
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        positions = _positions(attention_mask).index_select(1, places)
        more = {"position_ids": positions} if by_position else {}
        outputs = own.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **more,
        )
        present = tuple({"key": layer.keys, "value": layer.values} for layer in cache.layers)
        return {"logits": outputs.logits, "present": present}

    return forward


def _positions(mask: Tensor) -> Tensor:
    """Positions as transformers' `generate` counts them: padding on the left does not count."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _require(condition: Any, why: str) -> None:
    torch._check(condition, lambda: why)


def _pairs(past: Any) -> Pairs:
    return list(past.values()) if isinstance(past, dict) else list(past)


def _cache(pairs: Pairs = ()) -> Any:
    """transformers' cache that holds these tensors; without any it grows as many layers as the network has."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]
        """A layer whose length has no branch for an empty one: the graph is the same for every length."""

        def get_seq_length(self) -> int:
            return self.keys.shape[-2] if self.is_initialized else 0

    if not pairs:
        return Cache(layer_class_to_replicate=Layer)
    layers = []
    for pair in pairs:
        layer: Any = Layer()
        layer.keys, layer.values, layer.is_initialized = pair["key"], pair["value"], True
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layers.append(layer)
    return Cache(layers=layers)


def _require_cache(found: Found) -> list[str]:
    """Notes on what the user of the file must know.

    Raises:
        LoadError: the network cannot have its cache as inputs and outputs.
    """
    module: Any = found.module
    if found.exported is not None or not hasattr(module, "can_generate"):
        raise _refused(found, "it is not a model of transformers")
    config = module.config
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(found, "it has an encoder, whose outputs every step reads")
    if not module.can_generate():
        raise _refused(found, "it has no head that gives logits of the next token", _head(module))
    if config.get_text_config(decoder=True) is not config:
        raise _refused(found, "it takes more than text")
    names = _parameters(type(module))
    missing = [name for name in _ARGUMENTS if name not in names]
    if missing:
        state = [name for name in names if name in _OTHER_STATES]
        said = f"between steps it has `{state[0]}`" if state else f"it takes no `{missing[0]}`"
        raise _refused(found, f"{said}: it keeps no keys and values of every token")
    return [*_rotary(found, config), *_windows(found, config)]


def _rotary(found: Found, config: Any) -> list[str]:
    """Embeddings of positions that depend on how long the text is at the moment."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    kinds = {str(value.get("rope_type", value.get("type"))) for value in nested}
    if any("dynamic" in kind for kind in kinds):
        raise _refused(found, "its rotary embedding (`dynamic`) changes all keys as the text grows")
    if "longrope" not in kinds:
        return []
    limits = [value.get("original_max_position_embeddings") for value in nested]
    return [
        f"its rotary embedding (`longrope`) has other factors beyond {limits[0]} tokens: when a text grows beyond "
        "that, begin again with an empty cache and the whole text, or keys of both kinds mix"
    ]


def _windows(found: Found, config: Any) -> list[str]:
    from transformers.cache_utils import DynamicCache

    layers = DynamicCache(config=config).layers
    known = ("DynamicLayer", "DynamicSlidingWindowLayer")
    other = sorted({type(layer).__name__ for layer in layers} - {*known})
    if other:
        names = ", ".join(f"`{name}`" for name in other)
        raise _refused(found, f"layers of it keep another state: {names} in transformers")
    sizes = sorted({layer.sliding_window for layer in layers if layer.is_sliding})
    return [
        f"attention reaches over the last {size} tokens: the cache of the file keeps all, and the mask hides the "
        "older ones"
        for size in sizes
    ]


def _head(module: Any) -> str:
    """A class of transformers that is this network with a head, as a hint; nothing where it has another one."""
    from transformers import AutoModel, AutoModelForCausalLM

    bare, headed = AutoModel._model_mapping, AutoModelForCausalLM._model_mapping
    config = type(module.config)
    if config not in bare or config not in headed or not isinstance(module, bare[config]):
        return ""
    name = headed[config].__name__
    turned = " and " + _ONE_WAY if _sees_all(module.config) else ""
    return f'if the folder has the weights of one: `"architectures": ["{name}"]`{turned} in config.json'


def _sees_all(config: Any) -> bool:
    """True for a network that can be a decoder, and whose config leaves it an encoder."""
    return getattr(config, "is_decoder", None) is False


def _one_way(config: Any) -> str:
    """A hint for a network whose tokens see those behind them, too; nothing for others."""
    if not _sees_all(config):
        return ""
    return f"if it was trained as a decoder: {_ONE_WAY} in config.json, so that a token sees none behind it"


def _refused(found: Found, why: str, hint: str = "") -> LoadError:
    return LoadError(
        "the network cannot be written with its key/value cache",
        where=found.source,
        found=why,
        hint=hint or _WHO_CAN,
    )


def _parameters(owner: Any) -> list[str]:
    return list(inspect.signature(owner.forward).parameters)


def _lengths(config: Any) -> tuple[int, int]:
    """Lengths of the example's past and new tokens, within the positions that the network has."""
    limits = (getattr(config, key, None) for key in ("max_position_embeddings", "n_positions"))
    room = min([_PAST + _NEW, *(n for n in limits if isinstance(n, int) and n > 0)])
    return room - min(_NEW, room // 3), min(_NEW, room // 3)


def _empty(module: Any, batch: int) -> Pairs:
    """A cache without tokens, of the shapes and types that the network itself makes."""
    cache, ids = _cache(), torch.zeros(batch, 2, dtype=torch.int64, device=module.device)
    own: Any = type(module).__mro__[1]
    with torch.no_grad():
        own.forward(fresh(module), input_ids=ids, past_key_values=cache, use_cache=True)
    if not cache.layers or not all(layer.is_initialized for layer in cache.layers):
        raise ValueError("not every layer keeps keys and values")
    pairs = [{"key": layer.keys, "value": layer.values} for layer in cache.layers]
    if any(
        x.dim() != 4 or x.shape[0] != batch or x.shape[2] != 2
        for pair in pairs
        for x in pair.values()
    ):
        raise ValueError("its cache is not of the shape (batch, heads, tokens, features)")
    return [{name: x[:1, :, :0] for name, x in pair.items()} for pair in pairs]


def _inputs(
    module: Any, empty: Pairs, batch: int, past: int, new: int, generator: torch.Generator
) -> tuple[Any, ...]:
    """Drawn arguments; of the rows after the first a growing part on the left is padding."""
    high = int(module.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, high, (batch, new), generator=generator).to(module.device)
    mask = torch.ones(batch, past + new, dtype=torch.int64, device=module.device)
    for row in range(batch):
        mask[row, : min(row, past + new - 1)] = 0

    def drawn(x: Tensor) -> Tensor:
        shape = (batch, x.shape[1], past, x.shape[3])
        return torch.randn(shape, generator=generator).to(x)

    return ids, mask, tuple({name: drawn(x) for name, x in pair.items()} for pair in empty)


def _free_axes(name: str) -> tuple[int, ...]:
    return (1,) if name in ("input_ids", "attention_mask") else (2,)


def _require_same_in_steps(
    found: Found, module: Any, empty: Pairs, generator: torch.Generator
) -> None:
    """A network that keeps more than its cache would lose it between two calls of a file."""
    ids, mask, past = _inputs(module, empty, 2, 0, 4, generator)
    own: Any = type(module).__mro__[1]
    with torch.no_grad():
        steps = list(_in_steps(fresh(module), ids, mask, past))
        more = {"position_ids": _positions(mask)} if "position_ids" in _parameters(own) else {}
        whole = own.forward(
            fresh(module), input_ids=ids, attention_mask=mask, use_cache=False, **more
        )
    expected, got = whole.logits[:, -1].double(), steps[-1][:, -1].double()
    allowed = 1e-3 if whole.logits.dtype in (torch.float32, torch.float64) else 0.1
    if not bool((expected - got).norm() <= allowed * expected.norm()):
        said = "token by token it computes other logits than at once"
        raise _refused(found, said, _one_way(module.config))


def _in_steps(module: Any, ids: Tensor, mask: Tensor, past: Any) -> Iterator[Tensor]:
    first = module(ids[:, :3], mask[:, :3], past)
    yield first["logits"]
    yield module(ids[:, 3:], mask, first["present"])["logits"]
