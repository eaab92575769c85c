"""`normfold verify A B --layers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.judge.test_layers import faulty, file

__all__ = ["file"]  # the fixture


def test_the_layers_of_a_file(cli: Any, file: Path, tmp_path: Path) -> None:
    ran = cli("verify", "tests.judge.test_layers:net", str(file), "--input", "2x3x9x9", "--layers")
    assert ran.status == 0, ran.err
    assert "layers agree, or agree behind" in ran.out
    wrong = faulty(file, "blocks.1.conv.weight", tmp_path)
    arguments = ("tests.judge.test_layers:net", str(wrong), "--input", "2x3x9x9", "--layers")
    ran = cli("verify", *arguments)
    assert ran.status == 1
    assert "the first layer over its limit is `blocks.1" in ran.out
    ran = cli("verify", *arguments, "--json")
    states = {layer["path"]: layer["state"] for layer in json.loads(ran.out)["layers"]["layers"]}
    assert states["stem"] == "agrees"
    assert states["head"] == "exceeds"
