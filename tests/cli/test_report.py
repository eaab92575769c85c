"""`normfold report`: the report of an earlier run in other forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from normfold.report.cases import Entry
from normfold.report.markdown import markdown
from normfold.report.rendering import RENDERINGS, read, rendering
from tests.cli.conftest import Cli
from tests.report.runs import mixed


def test_a_report_is_read_back_and_rendered(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "net.report.json"
    path.write_text(mixed().to_json())
    data = json.loads(path.read_text())
    assert read(path) == [Entry("net", data)]
    for suffix in RENDERINGS:
        ran = cli("report", path, "-o", f"made/net{suffix}")
        assert (ran.status, ran.out) == (0, f"wrote made/net{suffix}\n"), ran.err
        assert (tmp_path / f"made/net{suffix}").read_text() == rendering(Path(suffix))(read(path))
    assert json.loads((tmp_path / "made/net.json").read_text()) == {
        "models": [{"name": "net", **data}]
    }
    assert read(tmp_path / "made/net.json") == [Entry("net", data)]
    assert cli("report", path).out == markdown(read(path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 1}',
        "[" * 100_000,
        "\x00",
        '{"schema": "2"}',
        '{"schema": 2, "sites": [{}]}',
        '{"schema": 2, "passes": 3}',
    ],
)
def test_what_is_not_a_report_is_refused(text: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "net.report.json").write_text(text)
    ran = cli("report", "net.report.json", "-o", "net.md")
    assert ran.status == 2
    ran.one_error("net.report.json")
    assert not (tmp_path / "net.md").exists()
