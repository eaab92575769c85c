"""The example pass does what its docstring says."""

from __future__ import annotations

import pytest

from examples import own_pass


def test_it_rewrites_one_site_and_declines_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    own_pass.main()
    lines = capsys.readouterr().out.splitlines()
    assert "drop-double-relu: 1 rewritten, 1 declined" in lines
    assert any("NF104" in line for line in lines)
    assert lines[-1] == "equivalent"
