"""What README and docs/ say is so: Python runs, commands parse and run, links and tables are right."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from normfold.cli import main
from normfold.cli.table import TABLE
from normfold.errors import InternalError, NormfoldError
from normfold.job import COMMANDS as JOBS
from normfold.job import GROUPS, Job, options_of
from normfold.job.presets import PRESETS, trained
from normfold.judge.files import Judge
from normfold.passes import BUILT_IN
from normfold.report import Report
from normfold.report.policy import Requirement
from normfold.report.reasons import Reason
from normfold.report.verdict import Budget
from normfold.rewrite.registry import find
from normfold.target import DEFAULTS
from normfold.targets.order import Draft
from tests.pages import (
    COMMANDS,
    DOCS,
    LINKED,
    MARKED,
    PAGES,
    README,
    ROOT,
    TABLES,
    TEXT,
    anchors,
    command_lines,
    indented,
    links,
    options,
    python_blocks,
    spans,
    table,
    used_options,
    written,
)


def test_tables_that_are_made_from_the_code() -> None:
    marked = {name for page in DOCS for _, name, _ in MARKED.findall(TEXT[page])}
    assert marked == set(TABLES)
    for page in DOCS:
        assert written(TEXT[page]) == TEXT[page], f"{page}: run `python -m tests.pages`"


# -- tables that are written by hand -----------------------------------------------------------------


def test_the_table_of_passes() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("docs/passes.md", "pass", "exactness")}
    assert rows == {name: find(name).exactness.value for name in BUILT_IN}


def test_the_table_of_presets() -> None:
    rows = {row[0].strip("`"): row[1].strip("`") for row in table("docs/passes.md", "`--to`")}
    assert rows == PRESETS
    for name in trained():
        assert f"`--to {name}`" in TEXT["docs/passes.md"]
    kinds = {row[0].strip("`") for row in table("docs/training.md", "`--to`", "in training")}
    assert kinds == set(trained())


def test_the_table_of_reasons() -> None:
    rows = table("docs/codes.md", "code", "name", "meaning", "what helps", "typical place")
    assert [row[0] for row in rows] == sorted(reason.code for reason in Reason)


def test_the_table_of_exit_codes() -> None:
    rows = [int(row[0]) for row in table("docs/verdict.md", "exit code")]
    kinds: list[type[NormfoldError]] = [NormfoldError, *NormfoldError.__subclasses__()]
    assert set(rows) == {0} | {kind.exit_code for kind in kinds}
    assert rows[-1] == InternalError.exit_code
    order = re.search(r"in this order: ([\d, ]+\d)\.", TEXT["docs/verdict.md"])
    assert order is not None
    assert sorted(map(int, order[1].split(", "))) == rows


def test_last_lines_that_are_shown() -> None:
    draft = Draft(Path("model.onnx"), "onnxruntime", lambda: iter(()))
    assert f"`{Judge(None).judge(draft, print)}`" in TEXT["docs/verdict.md"]
    unmet = Requirement.parse("fold-affine>=30", ["fold-affine"]).check(Report())
    assert f"NOT written: {unmet.replace('found 0', 'found 21')}" in TEXT["docs/verdict.md"]


def test_the_budget_of_integers() -> None:
    budget, text = Budget(), " ".join(TEXT["docs/integers.md"].split())
    assert budget.agreement is not None
    assert f"at least {budget.agreement * 100:g} % of the samples" in text
    assert f"other answers cost at most {budget.forfeit * 100:g} %" in text
    assert f"signal-to-noise ratio of at least {budget.snr_db:g} dB" in text
    low, clear = budget.below_simulation_db, budget.clear_db
    assert f"at most {low:g} dB below the simulation's, unless it is above {clear:g} dB" in text


def test_schemes_and_evidence() -> None:
    quantize = {item.name: item for group in GROUPS for item in options_of(group)}
    for header, name in (("scheme", "scheme"), ("`--evidence`", "evidence")):
        rows = [row[0].strip("`") for row in table("docs/integers.md", header)]
        assert sorted(rows) == sorted(quantize[name].choices)


def test_formats_and_their_targets() -> None:
    text = TEXT["docs/targets.md"].split("<!--")[0]
    for kind, name in DEFAULTS.items():
        assert f"`{kind}`" in text
        assert kind == "trt" or f"`{name}`" in text


# -- options and commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page: str) -> None:
    found = {
        name for span in spans(TEXT[page]) if span[0] == "-" for name in used_options(span.split())
    }
    assert found <= options(None)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    """And those that are jobs have options that go together."""
    for words in command_lines(TEXT[page]):
        name, rest = words[0], words[1:]
        assert name in COMMANDS, words
        assert used_options(rest) <= options(name), words
        if not rest or rest[0].startswith("-"):  # a name in a sentence
            continue
        given = COMMANDS[name].make_context(name, rest).params
        if name in JOBS:
            asked = {key: value for key, value in given.items() if value not in (None, (), [])}
            Job.of({key: asked[key] for key in asked.keys() - {"as_json", "verbose"}}, name)


def test_examples_in_the_help_parse() -> None:
    for item in TABLE:
        for line in item.examples:
            COMMANDS[item.name].make_context(item.name, shlex.split(line)[2:])


def test_the_readme_shows_how_to_start() -> None:
    assert len(README.splitlines()) <= 130
    for text in ("make demo", "make test", "'.[hub]'", "'.[openvino]'", "'.[trt]'", "'.[trt-rtx]'"):
        assert text in README
    for page in DOCS:
        assert page.count("/") > 1 or f"]({page})" in README, page


# -- links and names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for path, anchor in links(page):
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), path
        assert not anchor or anchor in anchors(file.read_text()), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = {
        word.split(":")[0].removesuffix(",")
        for span in spans(TEXT[page])
        for word in span.split()
        if re.match(r"(examples|passes|normfold|tests|benchmarks)/[\w./-]+\.\w+,?$", word)
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()
    modules = set(re.findall(r"python -m ((?:examples|benchmarks|tests)[\w.]*)", TEXT[page]))
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_are_named_exist(page: str) -> None:
    named = {span.split()[1] for span in spans(TEXT[page]) if re.match(r"make [a-z]", span)}
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= known


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem[0] != "_")
)
def test_examples_are_importable_and_explain_themselves(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"examples.{name}")
    assert module.__doc__
    assert capsys.readouterr().out == ""  # a script does its work when it is run, not imported


# -- what runs ---------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is empty but for `examples`, as the root of a clone has it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    plugin = ROOT / "examples" / "plugin"  # whose pass and tests a page shows
    monkeypatch.setattr(sys, "path", [str(ROOT), str(plugin), *sys.path])
    return tmp_path


@dataclass(frozen=True)
class Ran:
    """How a command ended, and the lines that it printed."""

    status: int
    lines: list[str]
    errors: str


Run = Callable[..., Ran]


@pytest.fixture
def run(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["normfold", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, [line for line in out.splitlines() if line.strip()], errors)

    return call


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python_runs(page: str, clone: Path) -> None:
    """The blocks of a page, in one namespace; `print(...)  # text` says what is printed."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in python_blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec", dont_inherit=True), namespace)
        for text in re.findall(r"^\s*print\(.*\)\s+# (.*)$", block, re.MULTILINE):
            assert text in printed.getvalue().splitlines()


def test_python_prints_what_settings_show(clone: Path) -> None:
    (block,) = python_blocks("docs/settings.md")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "settings.md", "exec"), {})
    shown = TEXT["docs/settings.md"].partition("It prints:")[2].partition("The line")[0]
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines == [line for line in printed.getvalue().splitlines() if line]


def transcripts() -> dict[str, list[str]]:
    """The commands of README that are shown with what they print."""
    found: dict[str, list[str]] = {}
    for line in indented(README):
        if line.startswith("$ "):
            found[line[2:]] = current = []
        elif found and line and not line.startswith(("pip ", "make ")):
            current.append(line)
    return found


def plain(line: str) -> str:
    """A line without what differs from run to run and between machines: measured numbers, versions, hashes."""
    line = re.sub(r"sha256 \w+", "sha256 #", line)
    line = re.sub(r"sm\d+(, sm\d+)*", "sm#", line)
    line = re.sub(r"\d+(\.\d+)+(e[+-]\d+)?", "#", line)
    line = re.sub(r"\d+(?= (s|MB|images|steps|samples)\b)", "#", line)
    line = re.sub(r"(\.onnx +)\d+", r"\1#", line)
    line = re.sub(r" / (random|x100|constant|zeros)", " / #", line)
    return " ".join(line.split())


def assert_printed(shown: list[str], printed: list[str]) -> None:
    """Every line that is shown was printed, in this order, and next to each other but for `...`."""
    lines, at, gap = [plain(line) for line in printed], 0, False
    for line in map(plain, shown):
        if line == "...":
            gap = True
            continue
        place = lines.index(line, at) if line in lines[at:] else None
        assert place is not None, f"not printed: {line}\n" + "\n".join(lines[at:])
        assert gap or place == at, f"not shown: {lines[at]}"
        at, gap = place + 1, False
    assert at == len(lines), f"not shown: {lines[at]}"


QUICK = ["--images", "16", "--synthesis-steps", "6"]


@pytest.mark.parametrize("command", transcripts())
def test_transcripts(command: str, run: Run) -> None:
    if "--export trt" in command:
        _require_rtx_without_gpu()
    ran = run(*shlex.split(command)[1:], *(QUICK if "quantize" in command else []))
    assert ran.status == 0, ran.errors
    assert_printed(transcripts()[command], ran.lines)


def _require_rtx_without_gpu() -> None:
    """The machine that README describes."""
    pytest.importorskip("tensorrt_rtx")
    from normfold.targets.tensorrt.backend import Gpu, probe

    if isinstance(probe(), Gpu):
        pytest.skip("there is a GPU: the engine is judged")


def test_there_are_three_transcripts() -> None:
    assert len(transcripts()) == 3


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face's tools write it: GPT-2 of two layers, random weights."""
    from tests import torchvision_shim

    torchvision_shim.install()  # transformers imports torchvision
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        vocab_size=200,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("words", [words for words in command_lines(README) if "gpt2/" in words])
def test_commands_on_a_language_model(words: list[str], gpt2: Path, clone: Path, run: Run) -> None:
    (clone / "gpt2").symlink_to(gpt2)
    weights_alone = "int4-weights" in words  # synthesises nothing
    quick = [] if words[0] != "quantize" else QUICK[:2] if weights_alone else QUICK
    ran = run(*words, *quick)
    assert ran.status in (0, 1), ran.errors
    assert "Traceback" not in ran.errors
    report = json.loads((clone / "out" / "gpt2.report.json").read_text())
    assert ran.lines[-1] == report["outcome"]
    assert ran.lines[-1].startswith("wrote out/gpt2.onnx: " if ran.status == 0 else "NOT written: ")


def test_a_language_model_in_4_bits_is_shown() -> None:
    shown = [words for page in PAGES for words in command_lines(TEXT[page])]
    assert ["quantize", "gpt2/", "--scheme", "int4-weights"] in shown
