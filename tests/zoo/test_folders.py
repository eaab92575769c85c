"""The part of folders as tests: ``pytest -m family tests/zoo/test_folders.py``."""

from __future__ import annotations

import pytest

from tests.zoo.folder_trial import folder_members, folder_trial
from tests.zoo.models import Member


@pytest.mark.family
@pytest.mark.parametrize("member", folder_members(), ids=lambda member: member.id)
def test_the_bare_command(member: Member) -> None:
    row = folder_trial(member)
    assert row.ok, (row.outcomes, row.error)
