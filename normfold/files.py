"""Files are made out of sight and renamed into place, whole or not at all: single ones, and whole folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from normfold.errors import NormfoldError, UsageError

# ending of a companion -> that of the file that it belongs to
_COMPANIONS = {
    ".onnx.data": ".onnx",
    ".engine.json": ".engine",
    ".bin": ".xml",
    "_apply.py": ".safetensors",
}
_TEMPORARY = ".normfold-tmp"
_ORDER = {
    ".onnx": 1,
    ".xml": 1,
    ".safetensors": 1,
    ".engine": 2,
}  # an engine is there only when all that it was made from is


def require_writable(folder: Path) -> None:
    """Refuse an output folder before the work is done, without making it."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = "no permission to write" if there.is_dir() else "not a folder"
        raise UsageError(
            "the output folder cannot be made or written to",
            where=str(folder),
            found=f"`{there}`: {found}",
        )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A private folder inside ``folder``: files become visible only through `publish`.

    A ``folder`` that was made for it and is empty in the end goes again.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "the output folder cannot be made", where=str(folder), found=str(error)
        ) from error
    sweep(folder)
    temporary = folder / f".normfold-{os.getpid()}"
    try:
        temporary.mkdir(exist_ok=True)
        yield temporary
    except OSError as error:
        raise NormfoldError(
            "the output could not be written", where=str(folder), found=str(error)
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def publish(temporary: Path, folder: Path) -> list[Path]:
    """Rename every finished file into ``folder``: each is the old one or the new one, never half of it.

    A model file goes with a companion: an ``.onnx`` or ``.xml`` with its weights, an ``.engine`` with its
    sidecar. The old one goes before its companion is replaced: killed in between, there is none, not a mixture.
    Companions that the new file does not have go last, and so does an engine whose ONNX file was replaced
    without it.
    """
    published, mask = list[Path](), os.umask(0)
    os.umask(mask)
    for path in [path for path in temporary.iterdir() if path.is_dir()]:
        (folder / path.name).mkdir(exist_ok=True)
        published += publish(path, folder / path.name)
    files = [path for path in temporary.iterdir() if path.is_file()]
    paths = sorted(files, key=lambda path: _ORDER.get(path.suffix, 0))
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in paths:
        target = folder / path.name
        for ending, owner in _COMPANIONS.items():
            if path.name.endswith(ending):
                name = path.name.removesuffix(ending) + owner
                target.with_name(name).unlink(missing_ok=True)
        path.chmod(0o666 & ~mask)  # some libraries write for the owner alone
        os.replace(path, target)
        published.append(target)
    for target in published:
        for stale in _stale(target):
            if stale not in published:
                stale.unlink(missing_ok=True)
    return sorted(published)


def write_text(path: Path, text: str) -> None:
    """A file, whole or not at all; its folder is made."""
    require_writable(path.parent)
    with staging(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
        publish(folder, path.parent)


def _stale(target: Path) -> list[Path]:
    """What lies beside a new file and does not belong to it, unless it is new as well."""
    found = [target.with_name(f"{target.stem}.statistics.safetensors")]
    if target.suffix == ".pt2":
        return found
    if target.suffix != ".onnx":
        return []
    found.append(target.with_name(f"{target.name}.data"))
    if target.name.endswith(".trt.onnx"):
        engine = target.with_name(target.name.removesuffix(".trt.onnx") + ".engine")
        script = engine.with_suffix(".build.py")
        found += [engine, engine.with_name(f"{engine.name}.json"), script]
    return found


def sweep(folder: Path) -> None:
    """Remove what killed runs left behind in a folder."""
    for stale in folder.glob(".normfold-*"):
        pid = stale.name.removeprefix(".normfold-")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def atomic(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Open temporary files beside ``paths``; when the block ends well, they take their places, last one last.

    Where more than one file is written and an older last one exists, it is removed before the first
    replacement: a reader, or a process killed in between, sees the old set, the new one or none, never a mixture.
    On failure nothing is changed and the temporary files are gone.
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}") for path in paths]
    files: list[IO[bytes]] = []
    try:
        for path in temporary:
            files.append(open(path, "wb"))  # noqa: SIM115
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if any(path.exists() for path in paths[:-1]):
            paths[-1].unlink(missing_ok=True)
        for source, path in zip(temporary, paths, strict=True):
            os.replace(source, path)
        _sync_folder(paths[0].parent)
    finally:
        for file in files:
            file.close()
        for path in temporary:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
