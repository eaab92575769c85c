"""Results that are kept: when they hold, and what happens to damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normfold.cli import cache
from normfold.cli.cache import Cache, Key
from normfold.report.cases import Drift, Entry
from tests.report.runs import mixed


@pytest.fixture
def key(tmp_path: Path) -> Key:
    write(tmp_path / "net.pt", "weights")
    write(tmp_path / "net.py", "code")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.npz", "samples")
    words = ("convert", "net.pt", "--data=data", "--trust-module=net")
    return Key("net", words, {"seed": 3}, tmp_path, False)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Entry("net", json.loads(mixed().to_json()), read=(str(tmp_path / "net.py"),))


@pytest.fixture
def kept(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "kept")


def write(path: Path, text: str) -> None:
    """A file that is older than a run that begins now."""
    path.write_text(text)
    os.utime(path, (time.time() - 10,) * 2)


def put(kept: Cache, key: Key, entry: Entry) -> None:
    kept.put(key, entry, time.time() - 1)


def test_a_result_holds(kept: Cache, key: Key, entry: Entry) -> None:
    assert kept.get(key) is None
    put(kept, key, entry)
    assert kept.get(key) == replace(entry, cached=True)
    assert kept.notes == []
    assert [path.suffix for path in kept.folder.iterdir()] == [".json"]


@pytest.mark.parametrize("name", ["net.pt", "net.py", "data/a.npz", "data/b.npz"])
def test_other_bytes(name: str, kept: Cache, key: Key, entry: Entry, tmp_path: Path) -> None:
    put(kept, key, entry)
    write(tmp_path / name, "others")
    assert kept.get(key) is None
    assert kept.notes == []


def test_a_file_that_is_gone(kept: Cache, key: Key, entry: Entry, tmp_path: Path) -> None:
    put(kept, key, entry)
    (tmp_path / "net.py").unlink()
    assert kept.get(key) is None


def test_other_options_settings_versions_and_variables(
    kept: Cache, key: Key, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(kept, key, entry)
    assert kept.get(replace(key, words=(*key.words, "--seed=1"))) is None
    assert kept.get(replace(key, settings={"seed": 4})) is None
    assert kept.get(replace(key, timed=True)) is None
    assert kept.get(replace(key, output="/somewhere")) is None  # which its report names
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "7")
        assert kept.get(key) is None
    for name in ("_versions", "processor"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, lambda: "another")
            assert kept.get(key) is None
    assert kept.get(key) is not None


def test_variables_that_the_users_code_asked_for(
    kept: Cache, key: Key, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SCALE", "2")
    put(kept, key, replace(entry, variables=("MY_SCALE", "NOT_SET")))
    assert kept.get(key) is not None
    monkeypatch.setenv("ANOTHER", "2")
    assert kept.get(key) is not None
    for name, value in (("MY_SCALE", "5"), ("NOT_SET", "")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert kept.get(key) is None
    assert "MY_SCALE" in next(kept.folder.iterdir()).read_text()


def test_what_is_timed_is_of_one_machine(
    kept: Cache, key: Key, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = replace(key, timed=True)
    put(kept, timed, entry)
    assert kept.get(timed) is not None
    monkeypatch.setattr(cache, "_machine", lambda: "another")
    assert kept.get(timed) is None


@pytest.mark.parametrize("code", [2, 70])
def test_faults_are_not_kept(code: int, kept: Cache, key: Key, entry: Entry) -> None:
    put(kept, key, replace(entry, data={**entry.data, "exit_code": code}))
    assert kept.get(key) is None


def test_what_changed_while_it_ran_is_not_kept(kept: Cache, key: Key, entry: Entry) -> None:
    kept.put(key, entry, time.time() - 3600)
    assert kept.get(key) is None


def test_damage_is_said_and_mended(kept: Cache, key: Key, entry: Entry) -> None:
    put(kept, key, entry)
    (file,) = kept.folder.iterdir()
    whole = file.read_text()
    for text in ("", "[]", "{}", whole[:-9], whole.replace('"ok": true', '"ok": false', 1)):
        file.write_text(text)
        kept.notes.clear()
        assert kept.get(key) is None
        assert "an earlier result was damaged" in kept.notes[0]
    put(kept, key, entry)
    assert kept.get(key) is not None


def test_a_folder_that_cannot_be_made(tmp_path: Path, key: Key, entry: Entry) -> None:
    (tmp_path / "file").write_text("")
    kept = Cache(tmp_path / "file" / "kept")
    put(kept, key, entry)
    assert "results cannot be kept" in kept.notes[0]


def test_what_is_not_used_goes(kept: Cache, key: Key, entry: Entry) -> None:
    put(kept, key, entry)
    kept.sweep()
    (file,) = kept.folder.iterdir()
    os.utime(file, (time.time() - 31 * 86400,) * 2)
    kept.sweep()
    assert list(kept.folder.iterdir()) == []


def test_an_entry_is_read_back(entry: Entry) -> None:
    whole = replace(entry, drift=(Drift("site", "note", "it folds", "a.py:3"),), cached=True)
    assert Entry.from_dict("x", json.loads(json.dumps(whole.to_dict()))) == whole


def test_variables_in_bytes_are_variables_too(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(
        "import os\nfrom normfold.cli import reads\nreads._watch_variables()\n"
        "os.environb.get(b'ONE'), os.environ.get('TWO')\nprint(reads.variables())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.strip() == "['ONE', 'TWO']"
