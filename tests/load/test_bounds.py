"""Small pickles that would hang, or take all memory: nested, circular, or of sizes that are only named."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold.errors import LoadError
from normfold.load import pickled
from normfold.load.trust import Trust
from tests.load.test_load_pickled import _checkpoint
from tests.load.test_rules import Called, refused


def test_keys_are_hashed_in_bounded_time(tmp_path: Path) -> None:
    """A 200-byte file hashed for ever: a tuple of two of itself, sixty times."""
    body = (
        b"}K\x01"
        + b"q\x00"
        + b"".join(
            b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86q" + bytes([at + 1]) for at in range(60)
        )
    )
    _checkpoint(tmp_path / "m.pt", body + b"Ns")
    refused(b"", tmp_path / "m.pt", "not a pickle")


def nested(levels: int = 60) -> bytes:
    """A tuple of two of itself, and so on: small in the file, and more than all memory written out."""
    steps = b"".join(
        b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86q" + bytes([at + 1]) + b"0"
        for at in range(levels)
    )
    return b"K\x01q\x000" + steps + b"h" + bytes([levels])


def module(table: str, content: bytes) -> bytes:
    """A Linear with this table in its state."""
    name = b"X" + len(table).to_bytes(4, "little") + table.encode()
    return b"ctorch.nn.modules.linear\nLinear\n)\x81}" + name + content + b"sb"


@pytest.mark.parametrize(
    "body",
    [
        b"ctorch\nSize\n" + nested() + b"\x85R", nested() + b")R",
        b"cbuiltins\ngetattr\nK\x01" + nested() + b"\x86R",
        b"ccollections\ndefaultdict\n" + nested() + b"\x85R", b"cbuiltins\nset\n](" + nested() + b"e\x85R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + nested() + b"K\x01K\x02K\x03tR",
        b"ccollections\nOrderedDict\n)R" + nested() + b"K\x01s",
        b"ccollections\nCounter\n)R" + nested() + b"K\x01s",
        b"cbuiltins\ncomplex\n" + nested() + b"\x85R", b"ctorch\ndevice\n" + nested() + b"\x85R",
        b"cpathlib\nPosixPath\n" + nested() + b"\x85R", b"(" + nested() + b"\x91", b"\x8f(" + nested() + b"\x90",
        # where a callee, a name or a key stands that only a message would write out
        module("_modules", b"}X\x01\x00\x00\x00a" + nested() + b")Rs"),
        module("_parameters", b"}X\x01\x00\x00\x00a" + nested() + b")Rs"),
        module("_forward_hooks", b"}K\x01" + nested() + b")\x81s"),
        module("_modules", b"ccollections\nOrderedDict\n)R" + nested() + b"Ns"),
        b"ctimm.layers.format\nFormat\n" + nested() + b"\x85R",
        b"cfunctools\npartial\nctorch.nn.functional\nrelu\nq\xf0\x85R(h\xf0" + nested() + b"}Ntb",
    ],
)  # fmt: skip
def test_nested_tuples_are_not_written_out(body: bytes, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "m.pt", body)
    with contextlib.suppress(LoadError):
        pickled.read(tmp_path / "m.pt", Trust())


def test_files_do_not_fill_memory(tmp_path: Path) -> None:
    for call in (Called(bytearray, 10**13), Called(torch.Size, [10**15])):
        torch.save({"w": torch.ones(2), "x": call}, tmp_path / "m.pt")
        try:
            pickled.read(tmp_path / "m.pt", Trust())
        except LoadError as error:
            assert error.exit_code == 4  # noqa: PT017


def test_sizes_that_are_only_named(tmp_path: Path) -> None:
    """45 bytes took 4.7 GB, and a recurrent network of 10**12 layers has no end."""
    refused({"x": Called(set, range(10**8))}, tmp_path / "m.pt", "a set of what is not a list")
    lstm: Any = nn.LSTM(2, 2)
    lstm.num_layers = 10**12
    refused(lstm, tmp_path / "m.pt", "layers")


def test_deep_and_circular_structures(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "m.pt", b"]" * 5000 + b"a" * 4999)
    refused(b"", tmp_path / "m.pt", "nested too deeply")
    module: Any = nn.Sequential(nn.Linear(2, 2))
    module.__dict__["twins"] = [module]
    torch.save(module, tmp_path / "m.pt")
    assert pickled.read(tmp_path / "m.pt", Trust()).twins[0] is not None
