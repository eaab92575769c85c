"""The other commands: their data on stdout, as text and as JSON, and their exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from normfold.cli.show import progress
from normfold.progress import Progress
from tests.cli.conftest import TINY, Cli
from tests.cli.nets import tiny
from tests.targets.tensorrt.fakes import ADA, tensorrt


def test_inspect(cli: Cli) -> None:
    ran = cli("inspect", "tests.cli.nets:stuck", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert [norm["path"] for norm in ran.json] == ["norm", "last", "stuck"]
    assert [norm["foldable"] for norm in ran.json] == ["yes", "yes", "NF105"]
    norm = ran.json[0]
    assert norm["position"] == "conv2d conv -> relu"
    assert norm["half_risk"] == "none"
    assert "nets.py" in norm["line"]
    assert ran.json[2]["position"].startswith("tanh")
    text = cli("inspect", "tests.cli.nets:stuck")
    assert text.out.startswith("3 norms")
    assert "NF105" in text.out


def test_inspect_keeps_norms_and_their_places_together(cli: Cli) -> None:
    """Also where canonicalize leaves the first one alone."""
    Path("nets_of_user.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 4, 3),"
        " nn.BatchNorm2d(4), nn.ReLU()).eval()\n"
    )
    ran = cli("inspect", "nets_of_user:make", "--input", "2x3x8x8", "--json")
    sys.modules.pop("nets_of_user")
    assert [(norm["path"], norm["foldable"], norm["position"]) for norm in ran.json] == [
        ("0", "NF101", "placeholder -> conv2d 1"),
        ("2", "yes", "conv2d 1 -> relu 3"),
    ]


def test_inspect_prints_the_graph(cli: Cli) -> None:
    before = cli("inspect", TINY, "--graph")
    after = cli("inspect", TINY, "--graph", "--passes", "canonicalize,fold-affine,restore,bake")
    assert (before.status, after.status) == (0, 0)
    assert (
        sum("batch_norm" in line.split(" = ")[-1].split("(")[0] for line in before.out.splitlines())
        == 2
    )
    assert "batch_norm" not in after.out
    assert "conv2d" in after.out


def test_plan_writes_nothing_and_says_what_would_be_done(cli: Cli) -> None:
    ran = cli("plan", "tests.cli.nets:stuck", "--json")
    assert (ran.status, ran.err) == (0, "")
    fold = next(item for item in ran.json["passes"] if item["spec"] == "fold-affine")
    assert {item["site"] for item in fold["applied"]} == {"norm", "last"}
    assert [(item["site"], item["code"]) for item in fold["declined"]] == [("stuck", "NF105")]
    assert "bake" not in ran.json["pipeline"]
    text = cli("plan", "tests.cli.nets:stuck")
    assert "would apply" in text.out
    assert "NF105" in text.out
    assert list(Path().iterdir()) == []


def test_verify_against_models_and_files(cli: Cli) -> None:
    same = cli("verify", TINY, TINY, "--json")
    assert (same.status, same.json["ok"], same.json["kind"]) == (0, True, "rounding")
    other = cli("verify", TINY, f"{TINY}(seed=1)")
    assert other.status == 1
    assert "verdict: NOT equivalent" in other.out
    assert cli("convert", TINY, "--verify", "off").status == 0
    file = cli("verify", TINY, "out/tiny.onnx", "--json")
    assert (file.status, file.json["ok"]) == (0, True)
    assert file.json["kind"].startswith("onnxruntime-")
    model = onnx.load("out/tiny.onnx")
    bias = next(item for item in model.graph.initializer if item.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * 1.01, bias.name))
    onnx.save(model, "out/wrong.onnx")
    wrong = cli("verify", TINY, "out/wrong.onnx", "--json")
    assert (wrong.status, wrong.json["ok"]) == (1, False)
    assert wrong.json["needed_tolerance"] > 1e-4


def test_verify_writes_infinities_as_null(cli: Cli) -> None:
    Path("nets_of_user.py").write_text(
        "from torch import nn\ndef wide():\n    return nn.Flatten()\n"
        "def wrong():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()\n"
    )
    ran = cli("verify", "nets_of_user:wide", "nets_of_user:wrong", "--input", "2x3x4", "--json")
    sys.modules.pop("nets_of_user")
    assert ran.status == 1
    assert ran.json["needed_tolerance"] is None


def test_bisect(cli: Cli, broken: str) -> None:
    fine = cli("bisect", TINY)
    assert (fine.status, fine.out, fine.err) == (0, "every pass keeps the verdict\n", "")
    assert cli("bisect", TINY, "--json").json is None
    found = cli("bisect", TINY, "--passes", broken)
    assert found.status == 1
    assert found.out.startswith("scale-linears{wrong=fc}: fc scaled by 1.01\n")
    data = cli("bisect", TINY, "--passes", broken, "--json")
    assert (data.status, data.json["spec"], data.json["site"]) == (
        1,
        "scale-linears{wrong=fc}",
        "fc",
    )


def test_bisect_names_a_layer_of_a_file_and_writes_a_part(cli: Cli) -> None:
    assert cli("convert", TINY, "--verify", "off").status == 0
    right = cli("bisect", TINY, "out/tiny.onnx")
    assert (right.status, right.err) == (0, "")
    assert right.out == "every pass keeps the verdict, and so does out/tiny.onnx\n"
    model = onnx.load("out/tiny.onnx")
    bias = next(item for item in model.graph.initializer if item.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * 1.01, bias.name))
    onnx.save(model, "wrong.onnx")
    found = cli("bisect", TINY, "wrong.onnx", "--reproducer", "fault")
    assert (found.status, found.err) == (1, "")
    first, second, *_, last = found.out.splitlines()
    assert first == "every pass keeps the verdict, wrong.onnx does not"
    assert second.startswith("layer     `fc` (linear ")
    assert "nets.py:" in second
    assert last == "wrote fault: the smallest part that fails"
    shown = next(x for x in Path("fault/README.md").read_text().splitlines() if "normfold" in x)
    given = [f"fault/{word}" if "." in word else word for word in shown.split()[1:]]
    assert cli(*given).status == 1
    data = cli("bisect", TINY, "wrong.onnx", "--json")
    assert (data.status, data.json["spec"], data.json["file"]) == (1, "", "wrong.onnx")
    assert data.json["layer"]["path"] == "fc"
    again = cli("bisect", TINY, "wrong.onnx", "--reproducer", "fault")
    assert again.status == 2
    again.one_error("the folder for the reproducer is not empty")
    cli("bisect", TINY, "no.onnx").one_error("there is no such file")


INEXACT = {
    "freeze-statistics",
    "fold-near-affine",
    "prune-small-channels",
    "replace-layernorm",
    "quantize-tables",
    "quantize-weights",
    "quantize-activations",
    "quantize-dynamic",
    "correct-bias",
}


def test_passes(cli: Cli, broken: str) -> None:
    ran = cli("passes", "--json")
    assert ran.status == 0
    names = [row["name"] for row in ran.json["passes"]]
    built_in = (
        "canonicalize fold-input fold-affine freeze-statistics fold-near-affine fold-mean merge-linear "
        "prune-dead-channels prune-small-channels elide-bias center-stream "
        "compress-stream rotate-stream "
        "replace-layernorm equalize correct-bias migrate-scale measure-ranges quantize-tables quantize-weights "
        "quantize-activations quantize-dynamic restore bake"
    )
    assert names[:24] == built_in.split()
    assert names[-1] == "scale-linears"
    assert set(ran.json["presets"]) == {"folded", "rmsnorm", "crmsnorm", "baked"}
    assert all(row["summary"] for row in ran.json["passes"])
    inexact = [row["name"] for row in ran.json["passes"] if row["exactness"] != "exact"]
    assert inexact == [name for name in names if name in INEXACT]
    fold = ran.json["passes"][2]
    assert "zero-padding=cheapest" in fold["options"]
    text = cli("passes")
    assert text.status == 0
    assert all(name in text.out for name in names)


def test_explain(cli: Cli) -> None:
    code = cli("explain", "NF105", "--json")
    assert (code.status, set(code.json)) == (0, {"title", "meaning", "remedy"})
    assert code.json["title"] == "NF105 nonlinear-neighbour"
    assert cli("explain", "nonlinear-neighbour").out == cli("explain", "NF105").out
    text = cli("explain", "fold-affine")
    assert "W' = a W" in text.out
    assert "max_gain" in text.out
    wrong = cli("explain", "NF1055")
    assert wrong.status == 2
    wrong.one_error("nothing is called `NF1055`", "did you mean `NF105`?")


def test_doctor(cli: Cli) -> None:
    ran = cli("doctor", "--json")
    assert (ran.status, ran.err) == (0, "")
    rows = {row["what"]: row["version"] for row in ran.json["environment"]}
    assert rows["torch"] == torch.__version__.split("+")[0] or rows["torch"] == torch.__version__
    assert ran.json["obstacles"] == []
    assert "torch" in cli("doctor").out
    fine = cli("doctor", TINY)
    assert fine.status == 0
    assert fine.out.endswith("the model is captured without obstacles\n")
    stuck = cli("doctor", "tests.cli.nets:branches", "--json")
    assert stuck.status == 4
    assert stuck.json["obstacles"]
    assert any("if y.sum() > 0:" in text for text in stuck.json["obstacles"])
    said = "".join(stuck.json["obstacles"])
    assert "the numbers in a tensor decide" in said
    assert "normfold doctor" not in said  # which is what runs
    assert "torch._check" not in said


def engines(cli: Cli) -> dict[str, tuple[str, str]]:
    """What doctor says of TensorRT."""
    rows = cli("doctor", "--json").json["environment"]
    return {row["what"]: (row["version"], row["needed for"]) for row in rows}


def test_doctor_on_engines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.targets import environment as diagnosis
    from normfold.targets.tensorrt import Gpu, backend, find

    def machine(found: Gpu | str) -> None:
        for module in (backend, diagnosis):
            monkeypatch.setattr(module, "probe", lambda: found)

    rtx = f"tensorrt-rtx {find('tensorrt-rtx').version}"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    machine("no NVIDIA driver")
    rows = engines(cli)
    assert rows["tensorrt"][0] == "missing"
    assert "`pip install tensorrt`" in rows["tensorrt"][1]
    assert "builds for sm75, sm80" in rows["tensorrt-rtx"][1]
    assert rows["GPU"] == ("none", "running engines: no NVIDIA driver")
    assert rows["engine builder"] == (rtx, "taken by --export trt: builds, does not run")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("11.1.0.1"))
    assert "there is none; no NVIDIA driver" in engines(cli)["tensorrt"][1]
    machine(ADA)
    rows = engines(cli)
    assert rows["tensorrt"] == ("11.1.0.1", "--export trt: builds for the GPU of this machine")
    assert rows["GPU"][0] == "a GPU (sm89)"
    assert rows["engine builder"] == ("tensorrt 11.1.0.1", "taken by --export trt")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("10.3.0"))
    rows = engines(cli)
    assert "10.3.0 is too old" in rows["tensorrt"][1]
    assert rows["engine builder"][0] == rtx
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    rows = engines(cli)
    assert rows["tensorrt-rtx"][0] == "missing"
    assert rows["engine builder"][0] == "none"
    assert "exits with 3" in rows["engine builder"][1]


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys, resource; sys.modules['torch'] = None; sys.argv = ['normfold', '--help']\n"
        "from normfold.cli import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "convert" in ran.stdout
    assert float(ran.stderr) < 0.5  # of computing: other processes do not count


def test_every_command_is_in_the_help_and_has_its_own(cli: Cli) -> None:
    text = cli("--help").out
    for name in ("convert", "inspect", "plan", "verify", "bisect", "passes", "explain", "doctor"):
        assert f"\n  {name}" in text
        own = cli(name, "--help")
        assert own.status == 0
        assert "--json" in own.out


def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress() as say:
        say(Progress("capturing"))
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress() as say:
        say(Progress("capturing"))
    assert "capturing" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_the_tiny_network_is_the_same_every_time() -> None:
    one, two = tiny().state_dict(), tiny().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


OWN_PASS = """from dataclasses import dataclass
from normfold.rewrite import Match, Pass

def is_relu(node):
    return str(node.target) == "aten.relu.default"

@dataclass(frozen=True)
class DropDoubleRelu(Pass):
    name = "drop-double-relu"

    def match(self, graph):
        for node in graph.nodes:
            if is_relu(node) and is_relu(node.args[0]):
                yield Match(node)

    def rewrite(self, match, rewriter):
        rewriter.replace(match.node, match.node.args[0])
"""


def test_a_pass_by_its_place(cli: Cli) -> None:
    """One file in the current folder; nothing is installed."""
    Path("my_passes.py").write_text(OWN_PASS)
    Path("double.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    text = "canonicalize,my_passes:DropDoubleRelu,bake"
    given = ("double:make", "--input", "2x8", "--passes")
    planned = cli("plan", *given, text)
    assert planned.status == 0
    assert "would apply" in planned.out
    assert cli("bisect", *given, text).status == 0
    made = cli("convert", *given, text, "--json").json
    assert [item["rewrites"] for item in made["passes"] if item["spec"] == "drop-double-relu"] == [
        1
    ]
    for wrong in ("my_passes:Nothing", "my_passes:is_relu", "no_such:Pass"):
        ran = cli("convert", *given, f"canonicalize,{wrong},bake")
        assert ran.status == 2
        ran.one_error(wrong)
