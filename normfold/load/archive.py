"""The two file formats of `torch.save`, read without unpickling: a zip archive, and that of torch before 1.6."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from normfold.errors import LoadError, last_line
from normfold.load.machine import read_first, read_records
from normfold.load.records import Name, Stored, every
from normfold.load.tensors import STORAGES, Unfit, damaged

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
Storages = Callable[[str, torch.dtype, int], torch.UntypedStorage]


def open_file(source: Path | bytes, where: str) -> tuple[Any, Storages]:
    """The records of a `torch.save` file, or of its bytes, and what gives the storages that they refer to.

    Raises:
        LoadError: not such a file, damaged, or a TorchScript archive.
    """
    if is_zip(source, where):
        return _open_zip(source, where)
    return _open_legacy(source if isinstance(source, bytes) else source.read_bytes(), where)


def is_zip(source: Path | bytes, where: str) -> bool:
    """True for an archive, False for a file of torch before 1.6; nothing of either is read.

    Raises:
        LoadError: neither of them, or a TorchScript archive.
    """
    if isinstance(source, bytes):
        head = source[:60]
    else:
        with open(source, "rb") as file:
            head = file.read(60)
    if head.startswith(b"PK"):
        _require_no_script(source, where)
        return True
    if head.startswith(b"\x80"):
        return False
    raise LoadError(
        "the file is not a PyTorch checkpoint",
        where=where,
        found=_describe(head),
        hint="give a file written by `torch.save`, `torch.export.save` or safetensors",
    )


def is_plain(path: Path) -> bool:
    """Whether a file is what `pickle.dump` writes: a pickle, and not one of `torch.save`."""
    with open(path, "rb") as file:
        head = file.read(20)
    return head.startswith(b"\x80") and _MAGIC.to_bytes(10, "little") not in head


def _readable(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _require_no_script(source: Path | bytes, where: str) -> None:
    try:
        names = torch._C.PyTorchFileReader(_readable(source)).get_all_records()
    except RuntimeError as error:
        raise damaged(where, last_line(error)) from None
    if "constants.pkl" in names:
        raise LoadError(
            "TorchScript archives are not supported: they hold code, not an nn.Module",
            where=where,
            hint="create the nn.Module again in Python and save it with `torch.export.save` "
            "(.pt2), or save `model.state_dict()` and give `--model pkg.mod:factory`",
        )


def _open_zip(source: Path | bytes, where: str) -> tuple[Any, Storages]:
    # torch's own zip reader: with duplicate names another reader could see another record
    check_directory(source, where)
    try:
        reader = torch._C.PyTorchFileReader(_readable(source))
        names = set(reader.get_all_records())
        if "data.pkl" not in names:
            raise LoadError(
                "the zip file is not a PyTorch checkpoint: it has no `data.pkl`",
                where=where,
                found=", ".join(sorted(names)[:5]),
            )
        records = read_records(reader.get_record("data.pkl"), where)
        order = reader.get_record("byteorder").decode() if "byteorder" in names else "little"
    except (RuntimeError, UnicodeDecodeError) as error:
        raise damaged(where, last_line(error)) from None
    if order not in ("little", "big"):
        raise damaged(where, f"byte order {order[:20]!r}")
    known: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, dtype: torch.dtype, elements: int) -> torch.UntypedStorage:
        if key not in known:
            name, size = f"data/{key}", elements * dtype.itemsize
            if name not in names or reader.get_record_size(name) != size:
                found = reader.get_record_size(name) if name in names else "no"
                raise Unfit(f"storage `{key[:40]}` has {found} bytes, {size} are wanted")
            read: Any = reader.get_storage_from_record
            known[key] = read(name, size, torch.UntypedStorage)._typed_storage()._untyped_storage
            if order != sys.byteorder:
                known[key].byteswap(dtype)
        return known[key]

    return records, storage


def check_directory(source: Path | bytes, where: str) -> None:
    """Refuse a zip file of which two readers would see different members.

    Raises:
        LoadError: names that occur twice, a second top folder, or directories that differ.
    """
    try:
        entries = zipfile.ZipFile(_readable(source)).infolist()
        listed = [entry.filename for entry in entries]
        seen = torch._C.PyTorchFileReader(_readable(source)).get_all_records()
    except Exception as error:  # both readers raise what they like
        raise damaged(where, last_line(error)) from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise damaged(where, "its members are compressed, which torch does not do")
    mine = sorted(name.partition("/")[2] for name in listed if not name.endswith("/"))
    if (
        mine != sorted(seen)
        or len(set(mine)) < len(mine)
        or len({name.partition("/")[0] for name in listed}) > 1
    ):
        raise LoadError(
            "the archive was refused: its directory can be read in two ways",
            where=where,
            found=f"{len(listed)} members by one reader, {len(seen)} by another",
            hint="write it again with `torch.save` or `torch.export.save`",
        )


def _open_legacy(data: bytes, where: str) -> tuple[Any, Storages]:
    """Pickles one after the other (magic number, version, system, content, keys), then the storages' numbers."""
    parts: list[Any] = []
    at = 0
    for _ in range(5):
        part, end = read_first(data, where, at)
        if not parts and part != _MAGIC:
            return part, _no_storages
        parts.append(part)
        at = end
    _, version, system, records, keys = parts
    if version != _PROTOCOL or not isinstance(system, dict) or not isinstance(keys, list):
        raise damaged(where, "not the parts of a file of torch before 1.6")
    if system.get("little_endian") is not True:
        raise damaged(where, "the file is of a big-endian machine and of torch before 1.6")
    dtypes = {
        record.id[2]: STORAGES[record.id[1]]
        for record in every(records)
        if isinstance(record, Stored) and isinstance(record.id, tuple) and len(record.id) >= 5
        if isinstance(record.id[1], Name)
        and record.id[1] in STORAGES
        and isinstance(record.id[2], str)
    }
    offsets: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str) or key not in dtypes or at + 8 > len(data):
            raise damaged(where, "a storage of the list is not in the file")
        (elements,) = struct.unpack_from("<q", data, at)
        size = elements * dtypes[key].itemsize
        if elements < 0 or at + 8 + size > len(data):
            raise damaged(where, f"storage {key[:40]!r} breaks off")
        offsets[key] = (at + 8, size)
        at += 8 + size
    known: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, dtype: torch.dtype, elements: int) -> torch.UntypedStorage:
        if key not in known:
            start, size = offsets.get(key, (0, -1))
            if size != elements * dtype.itemsize:
                raise Unfit(f"storage {key[:40]!r} has not the {elements} elements that are wanted")
            whole = torch.empty(size, dtype=torch.uint8)
            if size:
                whole.copy_(
                    torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.uint8)
                )
            known[key] = whole.untyped_storage()
        return known[key]

    return records, storage


def _no_storages(key: str, dtype: torch.dtype, elements: int) -> torch.UntypedStorage:
    raise Unfit("a pickle that refers to storages and has none")


def _describe(head: bytes) -> str:
    if not head.strip(b"\x00"):
        return "zero bytes"
    try:
        return f"text that starts with {head.decode('utf-8').splitlines()[0]!r}"
    except (UnicodeDecodeError, IndexError):
        return f"bytes that start with {head[:8].hex(' ')}"
