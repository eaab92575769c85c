"""Lines of source as CI services show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.report.places import Place, place, root


@pytest.fixture(autouse=True)
def subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is one of the repository's."""
    (tmp_path / "ci").mkdir()
    monkeypatch.chdir(tmp_path / "ci")


def test_all_ways_of_naming_a_file_are_one(tmp_path: Path) -> None:
    expected = Place(Path("nets/a b.py"), 12, "y = f(x): 3")
    (tmp_path / "link").symlink_to(tmp_path)
    for line in ("../nets/a b.py", str(tmp_path / "nets/a b.py"), "../ci/../nets/a b.py"):
        assert place(f"{line}:12: y = f(x): 3", tmp_path) == expected
        assert place(f"{line}:12: y = f(x): 3", tmp_path / "link") == expected


@pytest.mark.parametrize("line", ["", "net.py", "net.py:0: x", "net.py:x", "net.py:3x"])
def test_what_is_no_line(line: str, tmp_path: Path) -> None:
    assert place(line, tmp_path) is None


@pytest.mark.parametrize(
    ("file", "own"),
    [("a.py", True), ("/usr/a.py", False), ("../.venv/lib/site-packages/timm/a.py", False)],
)
def test_own_files(file: str, own: bool, tmp_path: Path) -> None:
    found = place(f"{file}:7", tmp_path)
    assert found is not None
    assert found.own == own


def test_the_root_is_what_the_service_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.delenv("CI_PROJECT_DIR", raising=False)
    assert root() == tmp_path / "ci"
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    assert root() == tmp_path
    monkeypatch.setenv("GITHUB_WORKSPACE", "/repository")
    assert root() == Path("/repository")
