from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import tests.torchvision_shim  # noqa: E402, F401
from tests.load import layout_nets  # noqa: E402
from tests.load.layouts import State, perturbed  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Writes:
    """Unpickling this in full would run `os.system`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"echo pwned > {self.target}",)


class Evaluates:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, (f"open({str(self.target)!r}, 'w').write('x')",)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """The file that exists when a malicious checkpoint was executed."""
    return tmp_path / "pwned"


@pytest.fixture(params=[Writes, Evaluates], ids=["os.system", "eval"])
def evil(request: pytest.FixtureRequest, proof: Path) -> object:
    made: object = request.param(proof)
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's own module, as the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mynets_for_load.py").write_text(
        "import torch\nfrom torch import nn\n"
        "import os\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=5):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n"
        "        self.bn = nn.BatchNorm2d(4)\n"
        "        self.fc = nn.Linear(4, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.bn(self.conv(x)).mean((2, 3)))\n"
        "def make(num_classes=5):\n    return Net(num_classes)\n"
        "def raises():\n    raise RuntimeError('no data here')\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(folder)
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    sys.modules.pop("mynets_for_load", None)


@pytest.fixture
def raw() -> State:
    """Weights of a network."""
    return perturbed(layout_nets.Net(), 1).state_dict()


@pytest.fixture
def mean() -> State:
    """The average of the weights."""
    return perturbed(layout_nets.Net(), 2).state_dict()


@pytest.fixture
def project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
