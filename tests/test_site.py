"""The site that `make docs` builds: its navigation, its reference, and the languages of its blocks."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

import normfold
from tests.pages import DOCS, LINKED, PAGES, ROOT, TEXT, blocks


def nav(part: Any) -> list[str]:
    """Pages of the navigation, in order."""
    if isinstance(part, str):
        return [part]
    return [
        page for inner in (part.values() if isinstance(part, dict) else part) for page in nav(inner)
    ]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(pages) == len(set(pages))
    own = {"index.md": "README.md"}  # docs/hooks.py adds it, and what lies outside of docs/
    files = {
        own.get(page) or (f"docs/{page}" if f"docs/{page}" in DOCS else page) for page in pages
    }
    assert files - set(DOCS) == set(LINKED) - set(DOCS)
    assert set(DOCS) <= files


def test_the_reference_has_the_whole_facade() -> None:
    named = re.findall(
        r"^::: normfold(?:\.\w+)*\.(\w+)$", TEXT["docs/reference/facade.md"], re.MULTILINE
    )
    assert sorted(named) == sorted(normfold.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_languages_that_are_checked(page: str) -> None:
    """Python runs and commands parse, in tests of their own; TOML is read here."""
    for language, text in blocks(page):
        assert language in ("python", "sh", "toml")
        if language == "toml":
            tomllib.loads(text)
