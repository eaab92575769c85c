"""The counts about the source, on a small tree of which they are known, and on this one."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import pytest

from benchmarks import house

REPEATED = "\n".join(f"    step_{n}(x)" for n in range(7))
FILES = {
    "normfold/__init__.py": "",
    "normfold/errors.py": "import ast\n",
    "normfold/convert.py": "def first():\n    pass\n\n\ndef execute(job):\n    one()\n    two()\n",
    "normfold/job/steps.py": (
        'class Cast:\n    bits: int = option(8, "Bits.")\n    keep: str = job.option("", "Kept.")\n'
        "    warmup: float = 0.05\n    many: list = field(default=())\n"
    ),
    "normfold/job/source.py": 'class Source:\n    bits: int = option(4, "More.")\n',
    "normfold/ops/table.py": (
        '_ROWS: tuple[Any, ...] = (\n    ("view cat", Op("sum")),\n    ("mean\\n dim", Op()),\n)\n'
        'OTHER = ("gelu", 1)\n\n\ndef f():\n    return "inside"\n'
    ),
    "normfold/ops/moves.py": 'NAMES = ("cat", "dim")\n',
    "normfold/ir/walk.py": (
        'from torch import fx\n\nProgress = Callable[[str], None]\nKEY = "normfold_static"\n\n\n'
        'class Walk(fx.Interpreter):\n    """cat"""\n\n    names = ("cat", "dim", "inside", "cat and mean", "a")\n'
        '    words = "view mean other".split()\n    table = {"view": 1}\n'
        '    args = argument(node, "dim"), getattr(x, "dim"), x["dim"], x.get("dim")\n'
        "    same = op_name(node), node.target is torch.ops.aten.view.default, aten.view.default\n"
    ),
    "normfold/ir/images.py": 'import torch\n\nNAMES = ("mean", "view")\n',
    "normfold/ir/targets.py": (
        "import torch\n\nOP = torch.ops.aten.view.default\nKEPT = [n for n in nodes if n.target is OP]\n"
        'OTHER = "cat"\n'
    ),
    "normfold/ranges/watch.py": (
        'from normfold.ir.walk import Walk\n\n\nclass Watch(Walk):\n    key = "normfold_static"\n'
        '    other = "normfold_range"\n\n\nclass Apart:\n    Progress: TypeAlias = str\n'
        f"def f(x):\n{REPEATED}\n"
    ),
    "normfold/rewrite/named.py": "from normfold.ops.mixing import keeps_constants, mixed\n",
    "normfold/rewrite/other.py": (
        "from normfold.ops import groups as grouping, layout\n\nx = grouping.pull_part, layout.axis_of\n"
    ),
    "normfold/rewrite/none.py": (
        "from normfold.ops import groups, layout\nfrom normfold.ops.mixing import keeps_constants\n\n"
        "x = layout.along, groups.axes, found.push(1), rewriter.pull\n"
    ),
    "passes/__init__.py": "\n" * 300,
    "passes/bake.py": f"def g(x):\n    # a comment\n{REPEATED}\n\n    last(x)\n",
    "passes/restore.py": "from normfold.ops.table import row_of\n\n" + "y = 'view'\n",
    "tests/test_long.py": "\n" * 401,
}


@pytest.fixture
def found(tmp_path: Path) -> dict[str, house.Count]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "normfold" / "passes").symlink_to("../passes")
    return {count.name: count for count in house.counts(tmp_path)}


def test_modules_and_the_page_that_executes(found: dict[str, house.Count]) -> None:
    assert found["loose modules"].detail == ["convert", "errors"]
    assert found["lines of `execute`"] == house.Count(
        "lines of `execute`", 3, ["normfold/convert.py:5"]
    )
    assert found["lines of the module of `execute`"].value == 7


def test_options(found: dict[str, house.Count]) -> None:
    assert found["option declarations"].value == 3
    assert found["option declarations"].detail == [
        "normfold/job/steps.py 2",
        "normfold/job/source.py 1",
    ]
    assert found["declared twice"].value == 1
    places = ["bits normfold/job/source.py:2", "bits normfold/job/steps.py:2"]
    assert found["declared twice"].detail == places


def test_lengths(found: dict[str, house.Count]) -> None:
    assert found["longest file"] == house.Count("longest file", 401, ["tests/test_long.py"])
    assert found["files over 400 lines"].detail == ["tests/test_long.py 401"]
    assert found["median lines of a pass"].value == (3 + 11) / 2


def test_op_names(found: dict[str, house.Count]) -> None:
    assert house.op_names(ast.parse(FILES[house.TABLE])) == {"view", "cat", "mean", "dim"}
    outside = found["op names outside ops and passes"]
    # two in `names`, two that are split, a key, one that is compared; a file that reads no ops is not there
    assert outside.detail == ["2 files", "normfold/ir/walk.py 6", "normfold/ir/targets.py 1"]
    assert found["op names in passes"].detail == ["1 files", "passes/restore.py 1"]


def test_traversals(found: dict[str, house.Count]) -> None:
    assert found["traversals"].detail == [
        "normfold/rewrite/named.py",
        "normfold/rewrite/other.py",
    ]


def test_interpreters_keys_and_aliases(found: dict[str, house.Count]) -> None:
    places = ["Walk normfold/ir/walk.py", "Watch normfold/ranges/watch.py"]
    assert found["interpreters"].detail == places
    assert found["keys `normfold_*`"].detail == ["normfold_static in 2", "normfold_range in 1"]
    assert found["files that use them"].value == 2
    assert [place.split(":")[0] for place in found["aliases called Progress"].detail] == [
        "normfold/ir/walk.py",
        "normfold/ranges/watch.py",
    ]


def test_repetition(found: dict[str, house.Count]) -> None:
    name = "lines of the largest repetition"
    assert found[name] == house.Count(name, 7, ["normfold/ranges/watch.py:12", "passes/bake.py:3"])
    few = [house.File("normfold/a.py", "\n".join("abcde" * 2))]
    assert house.repetition(few).value == 0  # five lines are too few
    twice = [house.File("normfold/a.py", "\n".join("abcdef" * 2))]
    assert house.repetition(twice).detail == ["normfold/a.py:1", "normfold/a.py:7"]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "normfold").mkdir()
    (tmp_path / "normfold" / "errors.py").touch()
    found = {count.name: count for count in house.counts(tmp_path)}
    assert found["lines of `execute`"].value is None
    assert str(found["lines of the module of `execute`"]).split()[-2:] == ["`execute`", "-"]
    assert found["op names outside ops"].detail == [f"there is no {house.TABLE}"]


@pytest.mark.slow
def test_this_tree_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    house.main([])
    assert time.process_time() - start < 5
    lines = capsys.readouterr().out.splitlines()
    house.main(["--json"])
    data = json.loads(capsys.readouterr().out)
    assert [line.split("  ")[0] for line in lines] == [count["name"] for count in data]
