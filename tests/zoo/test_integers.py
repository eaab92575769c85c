"""Transformers in integers, through the bare command on folders: ``pytest -m family tests/zoo/test_integers.py``.

Masks are inputs, lengths are free, tables are tied as each network ties them; decoders with their cache too.
"""

from __future__ import annotations

import pytest

from tests.zoo.integer_trial import SCHEMES, integer_members, integer_trial
from tests.zoo.models import Member

FOLDERS = """
    bert distilbert t5 t5-encoder whisper-classifier vit gpt2 llama opt qwen3 gemma3 phi mpnet albert layoutlm
"""
DECODERS = "gpt2 llama opt qwen3 gemma3 phi"
MEMBERS = [
    member
    for member in integer_members()
    if (member.source == "integer-folder" and member.name in FOLDERS.split())
    or (member.source == "integer-past" and member.name in DECODERS.split())
]


@pytest.mark.family
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_every_scheme_is_written_and_judged(member: Member) -> None:
    row = integer_trial(member)
    assert row.outcomes == dict.fromkeys(SCHEMES, "written"), row.said
