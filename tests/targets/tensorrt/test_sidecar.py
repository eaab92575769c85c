"""The file beside an engine: what it was built from and for, read before anything is deserialised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from normfold.errors import UsageError
from normfold.targets.order import sha256
from normfold.targets.tensorrt.sidecar import Sidecar

EMPTY = Sidecar().to_json()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "net.engine"
    path.write_bytes(b"plan")
    return path


def sidecar(engine: Path) -> Sidecar:
    return Sidecar(
        builder="tensorrt",
        version="10.12.0.36",
        targets=("sm86",),
        sha256=sha256(engine),
        onnx="net.trt.onnx",
        profile={"x": ((1, 3), (2, 3), (4, 3))},
        layers={"float16": 3},
    )


def test_it_is_read_as_it_was_written(engine: Path) -> None:
    wanted = sidecar(engine)
    Sidecar.path_of(engine).write_text(wanted.to_json())
    read = Sidecar.read(engine)
    assert Sidecar.path_of(engine).name == "net.engine.json"
    assert read == wanted
    read.check(engine, "10.12.0.36", "sm86")


def test_fields_of_later_versions_do_no_harm(engine: Path) -> None:
    data = {**json.loads(sidecar(engine).to_json()), "driver": "570"}
    Sidecar.path_of(engine).write_text(json.dumps(data))
    assert Sidecar.read(engine).builder == "tensorrt"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"targets": 3}',
        '{"targets": [3]}',
        '{"schema": 2}',
        '{"builder": null}',
        EMPTY.replace('"profile": {}', '"profile": {"x": 3}'),
        EMPTY.replace('"builder": ""', '"builder": null'),
        EMPTY.replace('"schema": 1', '"schema": 2'),
        EMPTY.replace('"targets": []', '"targets": [3]'),
    ],
)
def test_damaged_ones(text: str, engine: Path) -> None:
    Sidecar.path_of(engine).write_text(text)
    with pytest.raises(UsageError, match=r"(?s)no readable sidecar.*net.engine.json"):
        Sidecar.read(engine)


def test_bytes_and_nothing(engine: Path) -> None:
    with pytest.raises(UsageError, match="no readable sidecar"):
        Sidecar.read(engine)
    Sidecar.path_of(engine).write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no readable sidecar"):
        Sidecar.read(engine)


def test_another_engine(engine: Path) -> None:
    found = sidecar(engine)
    engine.write_bytes(b"plan!")
    with pytest.raises(UsageError, match="not the one that its sidecar describes"):
        found.check(engine, "10.12.0.36", "sm86")
    engine.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        found.check(engine, "10.12.0.36", "sm86")


@pytest.mark.parametrize(
    ("version", "flags", "fits"),
    [
        ("10.12.0.36", (), True),
        ("10.13.0.1", (), False),
        ("10.13.0.1", ("--version-compatible",), True),
        ("11.0.0.1", ("--version-compatible",), True),
        ("10.9.0.34", ("--version-compatible",), False),  # never backwards
    ],
)
def test_another_version(version: str, flags: tuple[str, ...], fits: bool, engine: Path) -> None:
    found = replace(sidecar(engine), flags=flags)
    if fits:
        found.check(engine, version, "sm86")
        return
    with pytest.raises(UsageError, match=rf"(?s)built by tensorrt 10.12.0.36.*{version}"):
        found.check(engine, version, "sm86")


@pytest.mark.parametrize(
    ("arch", "flags", "fits"),
    [
        ("sm86", (), True),
        ("sm89", (), False),
        ("sm89", ("--hardware-compatible ampere+",), True),
        ("sm75", ("--hardware-compatible ampere+",), False),
        ("sm89", ("--hardware-compatible same-cc",), False),
    ],
)
def test_another_gpu(arch: str, flags: tuple[str, ...], fits: bool, engine: Path) -> None:
    found = replace(sidecar(engine), flags=flags)
    assert found.fits(arch) is fits
    if fits:
        found.check(engine, "10.12.0.36", arch)
        return
    with pytest.raises(UsageError, match=rf"(?s)built for sm86.*this GPU is {arch}"):
        found.check(engine, "10.12.0.36", arch)
