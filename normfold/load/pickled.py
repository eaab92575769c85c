"""Files written by `torch.save`: whole modules and state dicts, read without running them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError
from normfold.load import opcodes
from normfold.load.opcodes import Global
from normfold.load.trust import Trust, refusal

_RESAVE = "write it again with `torch.save` and check that the copy is complete"


def read(path: Path, trust: Trust) -> Any:
    """The object in a `torch.save` file, tensors on the CPU.

    Raises:
        LoadError: not such a file, damaged, a TorchScript archive, or refused by `trust`.
    """
    with open(path, "rb") as file:
        head = file.read(60)
    if not head.startswith((b"PK", b"\x80")):
        raise LoadError(
            "the file is not a PyTorch checkpoint",
            where=str(path),
            found=_describe(head),
            hint="give a file written by `torch.save`, `torch.export.save` or safetensors",
        )
    zipped = head.startswith(b"PK")
    data = _main_record(path) if zipped else None
    if trust.pickle:
        return _torch_load(path, [], weights_only=False)
    if data is None:
        return _read_legacy(path)
    admitted = trust.admit(opcodes.scan(data, str(path)), str(path))
    return _torch_load(path, admitted, weights_only=True)


def is_program(path: Path) -> bool:
    """Whether a zip file is a `torch.export` archive, whatever its suffix."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(
        name.rpartition("/")[2] in ("archive_format", "serialized_exported_program.json")
        for name in names
    )


def _main_record(path: Path) -> bytes:
    # torch's own zip reader: with duplicate names another reader could see another record.
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = set(reader.get_all_records())
        if "constants.pkl" in names:
            raise LoadError(
                "TorchScript archives are not supported: they hold code, not an nn.Module",
                where=str(path),
                hint="create the nn.Module again in Python and save it with `torch.export.save` "
                "(.pt2), or save `model.state_dict()` and give `--model pkg.mod:factory`",
            )
        if "data.pkl" not in names:
            raise LoadError(
                "the zip file is not a PyTorch checkpoint: it has no `data.pkl`",
                where=str(path),
                found=", ".join(sorted(names)[:5]),
            )
        record: bytes = reader.get_record("data.pkl")
        return record
    except RuntimeError as error:
        raise LoadError(
            "the file is truncated or damaged",
            where=str(path),
            found=last_line(error),
            hint=_RESAVE,
        ) from None


def _read_legacy(path: Path) -> Any:
    try:
        return _torch_load(path, [], weights_only=True)
    except LoadError:
        names = _legacy_names(path)
        if not names:
            raise
        why = "not a tensor type, and the file has the format of torch < 1.6"
        refused = dict.fromkeys(names, why)
        raise refusal(str(path), refused) from None


def _legacy_names(path: Path) -> set[Global]:
    # Pickles follow each other in this format; the fifth and later parts are raw tensors.
    found = opcodes.Scan()
    data = path.read_bytes()
    try:
        for _ in range(4):
            opcodes._names_only(data, found)
            data = data[_length(data) :]
    except (ValueError, IndexError, EOFError):
        pass
    return {entry for entry in found.names if not opcodes.torch_safe(entry)}


def _length(data: bytes) -> int:
    import pickletools

    return [position or 0 for _, _, position in pickletools.genops(data)][-1] + 1


def _torch_load(path: Path, admitted: list[tuple[Any, str]], *, weights_only: bool) -> Any:
    known = set(torch.serialization.get_safe_globals())
    new: list[Any] = [item for item in admitted if item not in known]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(new):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=weights_only)
    except LoadError as error:
        error.where = str(path)
        raise LoadError(error.what, where=str(path), found=error.found, hint=error.hint) from None
    except pickle.UnpicklingError as error:
        raise LoadError(
            "the file was refused or is damaged",
            where=str(path),
            found=_unpickling(error),
            hint="save it again with a current torch; `--trust-pickle` lifts the check "
            "for a file that you made",
        ) from None
    except Exception as error:
        raise LoadError(
            "the file could not be read", where=str(path), found=last_line(error), hint=_RESAVE
        ) from None


def _unpickling(error: Exception) -> str:
    text = str(error)
    for mark in ("WeightsUnpickler error:", "UnpicklingError:"):
        if mark in text:
            text = text.split(mark, 1)[1]
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def _describe(head: bytes) -> str:
    if not head.strip(b"\x00"):
        return "zero bytes"
    try:
        return f"text that starts with {head.decode('utf-8').splitlines()[0]!r}"
    except (UnicodeDecodeError, IndexError):
        return f"bytes that start with {head[:8].hex(' ')}"


def last_line(error: BaseException) -> str:
    """The type and the first informative line of an exception, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def split(content: Any, where: str) -> tuple[nn.Module | dict[str, Any], list[str]]:
    """A module or a flat state dict out of what a checkpoint held, with notes on what was undone.

    ``{"state_dict": ...}``, ``{"model": ...}`` and the prefixes that DataParallel and
    torch.compile add are unwrapped.
    """
    notes: list[str] = []
    for _ in range(3):
        if isinstance(content, nn.Module):
            return content, notes
        if not isinstance(content, Mapping):
            raise LoadError(
                "the checkpoint holds neither a module nor a state dict",
                where=where,
                found=f"an object of type `{type(content).__name__}`",
            )
        key = next((key for key in _WRAPPERS if _holds_weights(content.get(key))), None)
        if key is None:
            break
        content = content[key]
        notes.append(f"took `{key}` out of the checkpoint, the other entries were left")
    state = {key: value for key, value in content.items() if isinstance(key, str)}
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(f"`{key}`" for key in list(state)[:5]) or "nothing"
        raise LoadError("the checkpoint holds no weights", where=where, found=keys)
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
            notes.append(f"removed the prefix `{prefix}` from every key")
    return state, notes


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params", "module", "ema")


def _holds_weights(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    return isinstance(value, Mapping) and any(
        isinstance(item, torch.Tensor) for item in value.values()
    )
