"""`.pt2` archives, read without torch's own reader: that one unpickles what its config calls pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from normfold.errors import LoadError
from normfold.load import archive, pickled
from normfold.load.program_text import check_document, refused
from normfold.load.tensors import Storage, Unfit, damaged, strided

_MODEL = "model"  # the name under which `torch.export.save` stores the one program


def read_program(path: Path) -> ExportedProgram:
    """The program of a file of `torch.export.save`, once its text and its members were found to be data.

    Raises:
        LoadError: refused, damaged, or of another format.
    """
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _bytes_to_dataclass
    from torch.export.pt2_archive import constants as c

    where = str(path)
    archive.check_directory(path, where)
    members = _Members(path)
    if c.ARCHIVE_VERSION_PATH not in members.names:
        raise LoadError(
            "the program has the format of torch 2.7 or older, which is read with pickle",
            where=where,
            hint="export it again with a current torch; `--trust-pickle` lifts the check for a file "
            "that you made",
        )
    version = members.read(c.ARCHIVE_VERSION_PATH).decode("utf-8", "replace")
    if version != c.ARCHIVE_VERSION_VALUE:
        raise damaged(
            where, f"archive version {version[:20]!r}, {c.ARCHIVE_VERSION_VALUE} is known"
        )
    native = sorted(name for name in members.names if name.startswith(c.AOTINDUCTOR_DIR))
    if native:
        raise refused("native code of AOTInductor", native[0], where)
    programs = sorted(name for name in members.names if name.startswith(c.MODELS_DIR))
    if programs != [c.MODELS_FILENAME_FORMAT.format(_MODEL)]:
        raise LoadError(
            "the archive does not hold one program of `torch.export.save`",
            where=where,
            found=", ".join(programs)[:200] or "no program",
        )
    text = members.read(programs[0])
    check_document(json.loads(text), where)
    state = members.tensors(c.WEIGHTS_CONFIG_FILENAME_FORMAT, c.WEIGHTS_DIR, "")
    constants = members.tensors(
        c.CONSTANTS_CONFIG_FILENAME_FORMAT, c.CONSTANTS_DIR, c.TENSOR_CONSTANT_FILENAME_PREFIX
    )
    inputs = members.unpickled(c.SAMPLE_INPUTS_FILENAME_FORMAT.format(_MODEL))
    deserializer: Any = ExportedProgramDeserializer(None)
    program: ExportedProgram = deserializer.deserialize(
        _bytes_to_dataclass(schema.ExportedProgram, text), state, constants, inputs
    )
    _require_same(program, where)
    return program


def _require_same(program: ExportedProgram, where: str) -> None:
    """Stored tensors have the sizes and types that the program was written for."""
    stored: dict[str, Any] = {**program.state_dict, **program.constants}
    values = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    for spec in program.graph_signature.input_specs:
        tensor, wanted = stored.get(str(spec.target)), values.get(getattr(spec.arg, "name", ""))
        if not isinstance(tensor, Tensor) or not isinstance(wanted, Tensor):
            continue
        if tuple(tensor.shape) != tuple(wanted.shape) or tensor.dtype != wanted.dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}, the program has {wanted.dtype} {tuple(wanted.shape)}"
            raise damaged(where, f"tensor `{str(spec.target)[:80]}` is {found}")


class _Members:
    """The members of one archive, by torch's zip reader."""

    def __init__(self, path: Path) -> None:
        from torch.export.pt2_archive._package import PT2ArchiveReader

        self.where = str(path)
        self._reader = PT2ArchiveReader(str(path))
        self.names = set(self._reader.get_file_names())

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise damaged(self.where, f"there is no member `{name[:80]}`")
        data: bytes = self._reader.read_bytes(name)
        return data

    def unpickled(self, name: str) -> Any:
        """What a member of `torch.save` holds; None for an empty one."""
        data = self.read(name)
        if not data:
            return None
        where = f"{self.where}, member {name}"
        records, storages = archive.open_file(data, where)
        return pickled.objects(records, storages, where)

    def tensors(self, config: str, folder: str, prefix: str) -> dict[str, Tensor]:
        """Tensors by name, as the config of the weights or of the constants describes them."""
        listed = json.loads(self.read(config.format(_MODEL)))["config"]
        storages: dict[str, torch.UntypedStorage] = {}
        found: dict[str, Tensor] = {}
        for name, entry in listed.items():
            member = str(entry["path_name"])
            if not member.startswith(prefix):
                raise refused("a pickled object, not a tensor", member, self.where)
            if entry.get("use_pickle"):
                value = self.unpickled(f"{folder}{member}")
                if not isinstance(value, Tensor):
                    raise refused("a pickled object, not a tensor", member, self.where)
                found[name] = value
                continue
            if member not in storages:
                storages[member] = _storage(self.read(f"{folder}{member}"))
            found[name] = _tensor(storages[member], entry, self.where, name)
        return found


def _storage(data: bytes) -> torch.UntypedStorage:
    whole = torch.empty(len(data), dtype=torch.uint8)
    if data:
        whole.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return whole.untyped_storage()


def _tensor(storage: torch.UntypedStorage, entry: Any, where: str, name: str) -> Tensor:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    meta = entry["tensor_meta"]
    try:
        dtype = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        sizes, strides = ([_whole(size) for size in meta[key]] for key in ("sizes", "strides"))
        tensor = strided(Storage(storage, dtype), _whole(meta["storage_offset"]), sizes, strides)
    except (Unfit, KeyError, TypeError) as error:
        raise damaged(where, f"tensor `{name[:80]}`: {error}") from None
    if not entry.get("is_param"):
        return tensor
    floating = tensor.is_floating_point() or tensor.is_complex()
    return nn.Parameter(tensor, requires_grad=bool(meta.get("requires_grad")) and floating)


def _whole(value: Any) -> Any:
    return value["as_int"] if isinstance(value, dict) and set(value) == {"as_int"} else value
