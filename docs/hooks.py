"""mkdocs: the site of docs/, README and every file of the repository that these pages link to.

Pages are written for readers of the repository: links are relative to the file, and may leave docs/.
Here such files become pages of the site, and the links follow. Listings of sources are below `source/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()[^)\s:#]+(?=[)#])")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".json": "json", ".yml": "yaml"}


def place(path: str) -> str:
    """Where a file of the repository stands in the site, as mkdocs names its source."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith((".md", ".png", ".svg")):
        return path
    return f"source/{path}.md"


def linked(path: str) -> set[str]:
    """The files that a page links to, from the root."""
    text = FENCE.sub("", (ROOT / path).read_text())
    return {
        posixpath.normpath(posixpath.join(posixpath.dirname(path), to)) for to in LINK.findall(text)
    }


def listing(path: str) -> str:
    """A page that shows a file; long data is cut, since nobody reads thousands of lines of it."""
    lines = (ROOT / path).read_text().splitlines()
    shown, rest = lines[:400], len(lines) - 400
    if Path(path).suffix == ".json":
        shown, rest = lines, 0
    end = f"\n{rest} more lines are in the file.\n" if rest > 0 else ""
    fence = "`" * 5
    body = "\n".join(shown)
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{body}\n{fence}\n{end}"


def slug(title: str, separator: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add README, and what it and all pages link to, at any distance."""
    found: set[str] = set()
    todo = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        if path.endswith(".md"):
            todo.extend(linked(path))
    for path in sorted(found):
        if path.startswith("docs/"):
            continue
        if place(path).startswith("source/"):
            files.append(File.generated(config, place(path), content=listing(path)))
        else:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    config.extra["repository"] = {place(path): path for path in found}
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links of a page to where the files stand in the site."""
    path = config.extra["repository"].get(page.file.src_uri)
    if path is None or not path.endswith(".md"):
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[0]))
        return posixpath.relpath(place(to), here or ".")

    # a fence stays as it is
    parts = re.split(f"({FENCE.pattern})", markdown, flags=FENCE.flags)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)
