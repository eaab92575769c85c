"""What the README says is so: its Python runs, its commands parse, its links and tables are right."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from normfold.cli import app
from normfold.job.presets import PRESETS
from normfold.passes import BUILT_IN
from normfold.rewrite import Reason
from normfold.rewrite.registry import find

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CHANGELOG.md", "examples/models/README.md"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def python_blocks(text: str) -> list[str]:
    return [code for language, code in _FENCE.findall(text) if language == "python"]


def spans(text: str) -> Iterator[str]:
    """Code of a page that is not Python: lines of fenced and indented blocks, and what is in backticks."""
    for language, code in _FENCE.findall(text):
        if language != "python":
            yield from code.splitlines()
    text = _FENCE.sub("", text)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text))


def command_lines(text: str) -> list[str]:
    """Every `normfold COMMAND ...` of a page."""
    found = [span.removeprefix("$ ") for span in spans(text)]
    return [line for line in found if re.match(r"normfold [a-z-]", line)]


def options(command: str | None) -> set[str]:
    """Long and short options of a command, of all for None."""
    chosen = COMMANDS.values() if command is None else [COMMANDS[command]]
    found = {name for item in chosen for param in item.params for name in param.opts}
    return found | {"--help", "-h", "--version"}


def used_options(line: str) -> list[str]:
    return [word.split("=")[0] for word in line.split() if re.match(r"--[a-z]|-[a-z]$", word)]


def links(page: str) -> list[str]:
    """Targets of links to files, relative to the page."""
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", (ROOT / page).read_text())
    return [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace; `print(...)  # text` says what is printed."""
    monkeypatch.chdir(ROOT)
    namespace: dict[str, Any] = {"__name__": "readme"}
    blocks = python_blocks(README)
    assert blocks
    for code in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        for text in re.findall(r"^print\(.*\)\s+# (.*)$", code, re.MULTILINE):
            assert text in printed.getvalue().splitlines()


def test_the_command_lines_of_the_readme_parse() -> None:
    lines = command_lines(README)
    assert any("--export onnx" in line for line in lines)
    for line in lines:
        name = line.split()[1]
        assert name in COMMANDS, line
        assert set(used_options(line)) <= options(name), line
        if len(line.split()) > 3:  # more than a name in a sentence: a whole command
            COMMANDS[name].make_context(name, shlex.split(line)[2:])


def test_options_named_in_the_readme_exist() -> None:
    found = {name for span in spans(README) for name in used_options(span) if span[0] == "-"}
    assert {"--trust-module", "--input"} <= found
    assert found <= options(None)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    missing = [
        target for target in links(page) if not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert missing == []


def test_the_readme_links_to_files() -> None:
    assert "normfold/report/schema.json" in links("README.md")


def test_files_named_in_the_readme_exist() -> None:
    named = {
        word.split(":")[0]
        for span in spans(README)
        for word in span.split()
        if re.match(r"(examples|passes|normfold|tests|benchmarks)/[\w./-]+\.\w+$", word)
    }
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)\b", " ".join(spans(README))))
    assert {"demo", "test"} <= targets
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known


def table(*header: str) -> list[list[str]]:
    """Rows of the README's table with this header."""
    rows, found = [], False
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[: len(header)] == list(header):
            found = True
        elif found and not line.startswith("|"):
            break
        elif found and not set(line) <= set("|- "):
            rows.append(cells)
    return rows


def test_the_table_of_passes() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("pass", "exactness")}
    assert rows == {name: find(name).exactness.value for name in BUILT_IN}
    for name in PRESETS:
        assert f"`--to {name}`" in README


def test_the_table_of_reasons() -> None:
    assert [row[0] for row in table("code", "reason")] == sorted(reason.code for reason in Reason)


def test_the_table_of_exit_codes() -> None:
    assert [row[0] for row in table("exit code")] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem[0] != "_")
)
def test_examples_are_importable_and_explain_themselves(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"examples.{name}")
    assert module.__doc__
    assert capsys.readouterr().out == ""  # a script does its work when it is run, not imported
