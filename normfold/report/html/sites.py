"""The network as a tree, with its norms and what became of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from normfold.report.cases import Entry
from normfold.report.html.elements import Element, code, element, pill, plain, section

_STATES = {"gone": "folded", "converted": "converted", "kept": "kept", "left": "left"}
_COLOURS = {"gone": "pass", "converted": "pass", "kept": "note", "left": "unproved"}


def sites(entry: Entry, place: str) -> Element | None:
    """Every site in the tree of its modules, with a filter; those that are left say why, and what would help."""
    found = entry.data.get("sites", ())
    if not found:
        return None
    declined = {item["site"]: item for item in entry.left()}
    around = {item["site"]: item for item in entry.data.get("around", ())}
    tree: dict[str, Any] = {}
    for item in found:
        *folders, name = item["site"].split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
            if "" in inner:  # a site with parts, such as a norm that is called twice
                break
        inner[name] = {
            "": {**item, **declined.get(item["site"], {}), **around.get(item["site"], {})}
        }
    states = sorted({item["state"] for item in found}, key=list(_STATES).index)
    kinds = sorted({item["kind"] for item in found})
    return section(
        "Norms",
        element(
            "div",
            element(
                "label", "Filter ", element("input", type="search", placeholder="blocks.3, NF114")
            ),
            _choice("State", states),
            _choice("Kind", kinds),
            element("output", f"{len(found)} of {len(found)}"),
            class_="filter",
        ),
        element("ul", *_branches(tree), class_="tree"),
    )


def _choice(name: str, values: list[str]) -> Element:
    options = [element("option", _STATES.get(value, value), value=value) for value in values]
    every = element("option", "all", value="")
    return element("label", f"{name} ", element("select", every, *options, name=name.lower()))


def _branches(tree: Mapping[str, Any]) -> Iterator[Element]:
    for name, inner in tree.items():
        if "" in inner:
            yield _leaf(name, inner[""])
            inner = {key: value for key, value in inner.items() if key}
            if not inner:
                continue
        path = name
        while len(inner) == 1:  # no level for a folder of one
            (only, deeper), *_ = inner.items()
            if "" in deeper:
                break
            path, inner = f"{path}.{only}", deeper
        summary = element("summary", code(path))
        yield element(
            "li", element("details", summary, element("ul", *_branches(inner)), open="open")
        )


def _leaf(name: str, site: Mapping[str, Any]) -> Element:
    state = site["state"]
    words = [site["site"], site["kind"], _STATES.get(state, state), site.get("code", "")]
    line: list[Element | str] = [
        code(name),
        f" {plain(site['kind'])} ",
        pill(_COLOURS.get(state, ""), _STATES.get(state, state)),
        f" {plain(site.get('code') or site.get('detail') or '')}",
    ]
    facts = [
        ("why", site.get("reason") or site.get("detail")),
        ("at", site.get("node")),
        ("line", site.get("line")),
        ("hint", site.get("hint")),
    ]
    rows = [x for k, v in facts if v for x in (element("dt", k), element("dd", plain(v)))]
    graphs = [
        element("figure", element("figcaption", title), element("pre", plain("\n".join(site[key]))))
        for key, title in (("before", "Before"), ("after", "After"))
        if key in site
    ]
    body: list[Element] = [element("dl", *rows)] if rows else []
    if graphs:
        body.append(element("div", *graphs, class_="graphs"))
    head = element("summary", *line) if body else element("span", *line)
    inner = element("details", head, *body) if body else head
    return element(
        "li",
        inner,
        data_state=state,
        data_kind=site["kind"],
        data_text=plain(" ".join(words)).lower(),
    )
