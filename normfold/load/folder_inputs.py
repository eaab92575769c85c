"""Example inputs that a transformers model is asked with: from its signature, its config and its folder."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import LoadError
from normfold.load.folder_config import read_json
from normfold.load.types import Wanted

TOKENS, DECODER_TOKENS = 16, 12  # different, so that no axis is taken for another
SAMPLES = 4000
_ASSUMED = (224, 224)
_VIDEO = ("pixel_values_videos",)
# Classes whose decoder reads the encoder's own tokens, shifted.
_OWN_DECODER_TOKENS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)

Candidate = tuple[tuple[Wanted, ...], tuple[str, ...]]


def wanted(
    module: Any,
    batch: int,
    image_size: tuple[int, int] | None = None,
    names: tuple[str, ...] = (),
) -> Iterator[Candidate]:
    """Inputs that a transformers model asks for and what was assumed of them, the best founded first.

    Tokens are ``(batch, 16)`` with a free length and an attention mask, those of a decoder ``(batch, 12)``; images
    ``(batch, channels, height, width)``, videos with frames before the channels; audio features
    ``(batch, mel bins, 2 * source positions)``, raw audio ``(batch, 4000)`` with a free length.

    Args:
        image_size: (height, width) from the folder's `preprocessor_config.json`; tried before the config's.
        names: what the folder's tokenizer gives.

    Raises:
        LoadError: the model takes inputs that nothing here knows.
    """
    declared = _declared_size(module.config)
    sizes = dict.fromkeys(size for size in (image_size, declared) if size is not None)
    for size in sizes or dict.fromkeys([_ASSUMED]):
        ask = _Asking(module, batch, size, names)
        inputs = ask.inputs()
        notes = list(ask.notes)
        pixels = any(item.name and item.name.startswith("pixel_values") for item in inputs)
        if pixels and not sizes:
            notes.append(
                f"images of {_ASSUMED[0]}x{_ASSUMED[1]} are assumed: the folder names no size; give one with "
                f"`--input pixel_values:1x{ask.channels}xHEIGHTxWIDTH`"
            )
        elif pixels and image_size not in (None, size):
            notes.append(
                f"images of {size[0]}x{size[1]}, as config.json says: the network does not run on those of "
                "preprocessor_config.json"
            )
        yield inputs, tuple(notes)
        if not pixels:
            return


@dataclass
class _Asking:
    """What is known while the inputs of one network are made."""

    module: Any
    batch: int
    size: tuple[int, int]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.config = self.module.config
        self.text = _part(self.config, "text_config", "encoder", "text_encoder", "thinker_config")
        self.vision = _part(self.config, "vision_config", "encoder", "backbone_config")
        self.audio = _part(self.config, "audio_config", "encoder")
        self.parameters = [
            p
            for p in inspect.signature(self.module.forward).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        self.taken = {p.name for p in self.parameters}
        channels = _first(self.vision, "num_channels") or _first(self.config, "num_channels")
        self.channels = channels or 3

    def inputs(self) -> tuple[Wanted, ...]:
        """One for each name that is asked for, in the order of forward's parameters."""
        asked = self._asked()
        needed = [p.name for p in self.parameters if p.default is p.empty or p.name == self._main()]
        unknown = [name for name in needed if name not in asked]
        if unknown or not asked:
            raise LoadError(
                f"it is not known what `{type(self.module).__name__}` takes for its inputs",
                found=f"forward has {', '.join(f'`{p.name}`' for p in self.parameters) or 'none'}",
                hint="give every input that it needs, for example "
                + " ".join(f"`--input {name}:{self.batch}x...`" for name in needed or ["NAME"]),
            )
        return tuple(_MAKERS[p.name](self) for p in self.parameters if p.name in asked)

    def _main(self) -> str:
        main = getattr(self.module, "main_input_name", "")
        return main if isinstance(main, str) else ""

    def _asked(self) -> set[str]:
        main, taken = self._main(), self.taken
        needed = {p.name for p in self.parameters if p.default is p.empty}
        asked = needed | ({main} & taken)
        towers = {"input_ids", "pixel_values", "input_features", "input_values"} & taken
        kinds = [hasattr(self.config, f"{kind}_config") for kind in ("text", "vision", "audio")]
        placeholders = [
            name for name in ("image", "video", "audio") if _has_token(self.config, name)
        ]
        if placeholders and "input_ids" in taken:
            left = sorted((taken & set(_MAKERS)) - {"input_ids", "attention_mask"} - needed)
            left = [name for name in left if name.startswith(("pixel", "input_f", "input_v"))]
            if left:
                self.notes.append(
                    f"only the text path is captured: {', '.join(f'`{name}`' for name in left)} "
                    f"need as many {placeholders[0]} tokens among `input_ids` as they have features; the part "
                    f"that reads them alone: `--module PATH --input {left[0]}:SIZES`"
                )
            asked |= {"input_ids"}
        elif asked & towers and (sum(kinds) > 1 or _sees_and_reads(self.config)):
            asked |= towers
        if "bbox" in taken and "input_ids" in asked:
            asked |= {"bbox"} | ({"pixel_values", "image"} & taken)
        if (
            "noise" in taken
            and _first(self.config, "patch_size")
            and hasattr(self.config, "mask_ratio")
        ):
            asked.add("noise")  # which patches an autoencoder masks: drawn in every call otherwise
        if not all(_first(self.config, key) for key in ("context_length", "num_input_channels")):
            asked.discard("past_values")
        asked |= self._decoder(asked)
        if "input_ids" in asked:
            asked |= {"attention_mask"} & taken
            asked |= {"token_type_ids"} & taken & set(self.names)
        elif "attention_mask" not in needed:
            asked.discard("attention_mask")
        return asked & set(_MAKERS)

    def _decoder(self, asked: set[str]) -> set[str]:
        """Tokens of a text decoder: it is one where forward names them, and has a vocabulary."""
        if not getattr(self.config, "is_encoder_decoder", False) or not asked:
            return set()
        if type(self.module).__name__.endswith(_OWN_DECODER_TOKENS):
            return set()
        return {"decoder_input_ids"} & self.taken if _vocabulary(self._decoder_config()) else set()

    def _decoder_config(self) -> Any:
        return _part(self.config, "decoder", "text_config", "text_encoder")

    def tokens(self) -> Wanted:
        return Wanted("input_ids", *self._sequence(self.text, TOKENS), self._free())

    def mask(self) -> Wanted:
        if "input_ids" not in self.taken:
            raise LoadError(
                "the length of `attention_mask` is not known",
                hint="give every input with `--input`",
            )
        return Wanted("attention_mask", self._sequence(self.text, TOKENS)[0], 2, self._free())

    def token_types(self) -> Wanted:
        kinds = _first(self.text, "type_vocab_size") or 2
        return Wanted("token_type_ids", self._sequence(self.text, TOKENS)[0], kinds, self._free())

    def decoder_tokens(self) -> Wanted:
        shape, high = self._sequence(self._decoder_config(), DECODER_TOKENS)
        return Wanted("decoder_input_ids", shape, high, (1,))

    def _sequence(self, config: Any, length: int) -> tuple[tuple[int, ...], int]:
        keys = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
        limits = [_first(config, key) for key in keys]
        length = min([length, *(n for n in limits if n)])
        choices = (2,) if type(self.module).__name__.endswith("ForMultipleChoice") else ()
        return (self.batch, *choices, length), _vocabulary(config) or 2

    def _free(self) -> tuple[int, ...]:
        return (2,) if type(self.module).__name__.endswith("ForMultipleChoice") else (1,)

    def boxes(self) -> Wanted:
        shape = (*self._sequence(self.text, TOKENS)[0], 4)
        if type(self.module).__name__.startswith("Bros"):  # takes them as fractions of the page
            return Wanted("bbox", shape, 0, (1,))
        self.notes.append("`bbox` is drawn as zeros: corners at random are not boxes")
        return Wanted("bbox", shape, 1, (1,))

    def image(self, name: str) -> Wanted:
        frames = _first(self.vision, "num_frames") or _first(self.config, "num_frames")
        if name in _VIDEO:
            frames = _first(self.config, "frames_per_clip") or frames or 16
        middle = (frames, self.channels) if frames else (self.channels,)
        return Wanted(name, (self.batch, *middle, *self.size))

    def noise(self) -> Wanted:
        side = _first(self.config, "patch_size") or 1
        return Wanted("noise", (self.batch, (self.size[0] // side) * (self.size[1] // side)))

    def features(self) -> Wanted:
        """Mel features: Whisper's have the frames last, and as many as it has positions for."""
        owner = self.audio
        bins = next(
            filter(
                None,
                (
                    _first(part, key)
                    for part in (owner, self.config)
                    for key in ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim",
                                "n_mels", "feature_size")
                ),
            ),
            80,
        )  # fmt: skip
        positions = _first(owner, "max_source_positions") or 50
        kind = str(getattr(owner, "model_type", ""))
        if kind.startswith("clap"):
            side = _first(owner, "spec_size") or 256
            return Wanted("input_features", (self.batch, 1, side * side // bins, bins))
        if kind.startswith(_FRAMES_FIRST):
            return Wanted("input_features", (self.batch, 128, bins), 0, (1,))
        return Wanted("input_features", (self.batch, bins, 2 * positions))

    def values(self) -> Wanted:
        """Raw audio; the spectrogram transformer takes (frames, mel bins)."""
        bins, frames = _first(self.config, "num_mel_bins"), _first(self.config, "max_length")
        if bins and frames:
            return Wanted("input_values", (self.batch, frames, bins))
        if hasattr(self.config, "audio_channels") or hasattr(self.config, "codebook_size"):
            shape = (self.batch, _first(self.config, "audio_channels") or 1, SAMPLES)
            return Wanted("input_values", shape, 0, (2,))
        return Wanted("input_values", (self.batch, SAMPLES), 0, (1,))

    def past(self) -> Wanted:
        """A time series: (batch, context, channels)."""
        length = _first(self.config, "context_length") or 0
        channels = _first(self.config, "num_input_channels") or 0
        return Wanted("past_values", (self.batch, length, channels))


_FRAMES_FIRST = ("speech_to_text", "wav2vec2-bert", "seamless", "parakeet", "lasr")
_MAKERS: dict[str, Callable[[_Asking], Wanted]] = {
    "input_ids": _Asking.tokens,
    "attention_mask": _Asking.mask,
    "token_type_ids": _Asking.token_types,
    "decoder_input_ids": _Asking.decoder_tokens,
    "bbox": _Asking.boxes,
    "pixel_values": lambda ask: ask.image("pixel_values"),
    "pixel_values_videos": lambda ask: ask.image("pixel_values_videos"),
    "image": lambda ask: ask.image("image"),
    "noise": _Asking.noise,
    "input_features": _Asking.features,
    "input_values": _Asking.values,
    "past_values": _Asking.past,
}


def _has_token(config: Any, kind: str) -> bool:
    """Whether tokens of the text stand for the features of an image, a video or a sound."""
    names = (f"{kind}_token_id", f"{kind}_token_index")
    return any(isinstance(getattr(config, name, None), int) for name in names)


def _sees_and_reads(config: Any) -> bool:
    return all(getattr(config, name, None) for name in ("vocab_size", "image_size"))


def _part(config: Any, *names: str) -> Any:
    """The first of the parts that a config has, else itself."""
    for name in names:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "model_type"):
            return part
    return config


def _first(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _vocabulary(config: Any) -> int | None:
    return _first(config, "vocab_size")


def _declared_size(config: Any) -> tuple[int, int] | None:
    """(height, width) that a config or a part of it declares."""
    parts = ("vision_config", "backbone_config", "encoder", "encoder_config")
    for owner in (config, *(getattr(config, name, None) for name in parts)):
        for name in ("image_size", "crop_size", "input_size"):
            size = _pair(getattr(owner, name, None))
            if size is not None:
                return size
    return None


def _pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of the ways in which a config or a preprocessor writes a size."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return _pair({"height": size[0], "width": size[1]})
    if not isinstance(size, dict):
        return None
    for high, wide in (("height", "width"), ("max_height", "max_width")):
        pair = (size.get(high), size.get(wide))
        if all(isinstance(side, int) and side > 0 for side in pair):
            return pair  # type: ignore[return-value]
    sides = (size.get("shortest_edge"), size.get("longest_edge"))
    return next((_pair(side) for side in sides if isinstance(side, int)), None)


def image_size(folder: Path) -> tuple[tuple[int, int] | None, list[str]]:
    """(height, width) after the folder's preprocessor, and a note where it is a square by assumption."""
    config: dict[str, Any] = {}
    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
        ("video_preprocessor_config.json", None),
    ):
        if (folder / name).is_file():
            found = read_json(folder / name)
            config = found if key is None else found.get(key) or {}
            if isinstance(config, dict) and "size" in config:
                break
    if not isinstance(config, dict):
        return None, []
    if config.get("do_center_crop") and (size := _pair(config.get("crop_size"))):
        return size, []
    if config.get("do_pad") and (size := _pair(config.get("pad_size"))):
        return size, []
    wanted = config.get("size") if config.get("do_resize", True) else None
    size = _pair(wanted)
    if size is None or not isinstance(wanted, dict) or "shortest_edge" not in wanted:
        return size, []
    square = f"{size[0]}x{size[1]}"
    return size, [
        f"images of {square}: the folder names the shorter side alone; give others with `--input`"
    ]


def tokenizer_names(folder: Path) -> tuple[str, ...]:
    """Inputs that the folder's tokenizer gives; none where there is no tokenizer."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return ()
    config = read_json(file)
    names = config.get("model_input_names")
    if not names:
        import transformers

        with contextlib.suppress(Exception):  # a tokenizer that needs a package which is not here
            names = getattr(transformers, str(config.get("tokenizer_class"))).model_input_names
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()
