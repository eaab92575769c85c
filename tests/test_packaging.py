"""What a user installs: exactly the sources of normfold/ and passes/, all under one name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that has to succeed; the checkout is not on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    return ran.stdout


def build(source: Path, kind: str, output: Path) -> Path:
    """Build one distribution of the project in ``source``; the file that came out."""
    run(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", output, cwd=source)
    (built,) = output.iterdir()
    return built


def contents(wheel: Path) -> dict[str, int]:
    """The files in a wheel and their checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist()}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files of the repository that git knows and that exist, relative to its root."""
    listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    return [Path(name) for name in listed if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def clone(tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, links kept: what a fresh clone holds."""
    root = tmp_path_factory.mktemp("clone")
    for name in tracked:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name, follow_symlinks=False)
    return root


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone, "--wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(clone: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution; built after the wheel, because both use the same folder."""
    archive = build(clone, "--sdist", tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, as they would lie in site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_exactly_the_sources(tracked: list[Path], wheel: Path) -> None:
    link = Path("normfold/passes")
    sources = {name.as_posix() for name in tracked if name.parts[0] == "normfold" and name != link}
    passes = {f"normfold/{name.as_posix()}" for name in tracked if name.parts[0] == "passes"}
    info = "normfold-0.1.0.dist-info/"
    metadata = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt"}
    expected = sources | passes | {info + name for name in (*metadata, "licenses/LICENSE")}
    assert passes, "the wheel would hold no pass"
    assert "normfold/py.typed" in sources
    assert contents(wheel).keys() == expected


def test_one_top_level_name(installed: Path) -> None:
    info = installed / "normfold-0.1.0.dist-info"
    assert (info / "top_level.txt").read_text().split() == ["normfold"]
    assert {p.name for p in installed.iterdir()} == {"normfold", info.name}
    assert "normfold = normfold.cli:main" in (info / "entry_points.txt").read_text()


def test_sdist_holds_the_passes_once(tracked: list[Path], sdist: Path) -> None:
    passes = {name.as_posix() for name in tracked if name.parts[0] == "passes"}
    assert {p.relative_to(sdist).as_posix() for p in (sdist / "passes").iterdir()} == passes
    assert not (sdist / "normfold" / "passes").exists()


def test_wheel_from_the_sdist_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build(sdist, "--wheel", tmp_path)) == contents(wheel)


def test_installed_passes_import(tracked: list[Path], installed: Path, tmp_path: Path) -> None:
    stems = [name.stem for name in tracked if name.parts[0] == "passes" and name.suffix == ".py"]
    modules = ["normfold.passes", *(f"normfold.passes.{s}" for s in stems if s != "__init__")]
    code = (
        f"import importlib, sys; sys.path.insert(0, {str(installed)!r})\n"
        f"for name in {modules!r}: print(importlib.import_module(name).__file__)"
    )
    files = run(sys.executable, "-I", "-c", code, cwd=tmp_path).split()
    assert len(files) == len(modules)
    assert all(Path(file).is_relative_to(installed) for file in files), files


@pytest.mark.parametrize("name", ["passes", "cli"])
def test_nothing_else_is_importable(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print(u.find_spec({name!r}))"
    assert run(sys.executable, "-I", "-c", code, cwd=tmp_path).strip() == "None"
