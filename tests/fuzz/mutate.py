"""Mutations of bytes, of members of archives, and of texts."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Sequence

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
# one of each instruction of a pickle, and names that must not be looked up
_PICKLE = (
    b"(.012F1.0\nI1\nJ\xff\xff\xff\xffK\x01L1L\nM\x01\x00NQRS'a'\n]ab"
    b"cbuiltins\neval\nctorch\nload\ncos\nsystem\ndeh\x00iloq\x00stu}"
    b"\x81\x82\x01\x85\x86\x87\x88\x89\x8a\x01\x02\x8c\x01a\x8f\x90\x91\x92\x93\x94"
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00\x97\x98"
)


def damaged(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """The bytes of a file with one to a few mutations; of an archive, half of the time one member's."""
    if data[:2] == b"PK" and draw.random() < 0.6:
        try:
            return _member(data, draw, others)
        except (zipfile.BadZipFile, ValueError, KeyError):
            pass
    return _bytes(data, draw, others)


def _bytes(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            return b""
        at = draw.randrange(len(found))
        match draw.randrange(10):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                found[at] = draw.randrange(256)
            case 2:
                del found[at:]
            case 3:
                del found[at : at + draw.choice((1, 2, 4, 8, 64))]
            case 4:
                found[at:at] = found[at : at + draw.choice((1, 4, 16, 256))]
            case 5:
                number, size = draw.choice(_NUMBERS), draw.choice((1, 2, 4, 8))
                found[at : at + size] = struct.pack("<Q", number)[:size]
            case 6:
                start = draw.randrange(len(_PICKLE))
                found[at:at] = _PICKLE[start : start + draw.choice((1, 2, 4, 16))]
            case 7:
                other = draw.choice(others)
                start = draw.randrange(max(1, len(other)))
                found[at : at + 64] = other[start : start + 64]
            case 8:
                end = draw.randrange(len(found))
                found[at : at + 16], found[end : end + 16] = (
                    found[end : end + 16],
                    found[at : at + 16],
                )
            case 9:
                found[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 32))))
    return bytes(found)


def _member(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """An archive that is right, but for one member, or for the list of them."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    at = draw.randrange(len(members))
    name, content = members[at]
    match draw.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((name, _bytes(content, draw, others)))
        case 2:
            members[at] = (name + draw.choice((".", "/x", "\n", "é", "../x")), content)
        case 3 if name.endswith(".json"):
            members[at] = (name, _json(content, draw))
        case _:
            likely = [
                i
                for i, (n, _) in enumerate(members)
                if n.endswith((".pkl", ".json", ".pt", ".npy"))
            ]
            at = draw.choice(likely or [at])
            name, content = members[at]
            new = _json(content, draw) if name.endswith(".json") else _bytes(content, draw, others)
            members[at] = (name, new)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members:
            file.writestr(name, content)
    return out.getvalue()


def _json(content: bytes, draw: random.Random) -> bytes:
    """One value of a document replaced, or taken out."""
    document = json.loads(content)
    places: list[tuple[object, object]] = []
    left = [document]
    while left:
        top = left.pop()
        items = (
            top.items()
            if isinstance(top, dict)
            else enumerate(top)
            if isinstance(top, list)
            else ()
        )
        for key, value in items:
            places.append((top, key))
            left.append(value)
    if not places:
        return b"null"
    holder, key = draw.choice(places)
    values: tuple[object, ...] = (
        *(None, -1, 0, 2**70, 1.5, True, [], {}, [1]),
        *("", "x", "a" * 3000, "__import__('os')", "torch.ops.aten.from_file.default"),
    )
    if draw.random() < 0.15:
        del holder[key]  # type: ignore[attr-defined]
    else:
        other, there = draw.choice(places)
        value = draw.choice((draw.choice(values), other[there]))  # type: ignore[index]
        holder[key] = value  # type: ignore[index]
    return json.dumps(document).encode()


_WORDS = (
    "{", "}", "=", ",", ":", "x", "1x3x8x8", "-1", "0", "99999999999999999999", "nan", "inf", "1e400", "true", "[",
    "]", '"', "'", "\n", "\t", "\x00", "\x1b[31m", "é", "\u202e", "f32", "i64", "..", "/", "~", "*", "(", ")", "#",
    "canonicalize", "fold-affine", "bake", "max-gain=", "os:system", "builtins:eval", "trust-pickle = true\n",
    "[convert]\n", "output = '/'\n", "\\", "${HOME}", "%s", "a" * 500,
)  # fmt: skip


def damaged_text(text: str, draw: random.Random) -> str:
    """A text with one to a few mutations."""
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        parts = re.split(r"(\W)", text) or [""]
        at = draw.randrange(len(parts))
        match draw.randrange(6):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, draw.choice(_WORDS))
            case 2:
                parts[at] = draw.choice(_WORDS)
            case 3:
                parts.insert(at, parts[draw.randrange(len(parts))])
            case 4:
                draw.shuffle(parts)
            case 5:
                parts = parts[:at]
        text = "".join(parts)
    return text
