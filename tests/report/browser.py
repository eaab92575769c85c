"""Pages of four runs in a browser: python -m tests.report.browser [--out out/pages] [--chromium /usr/bin/chromium]

A ViT as RMSNorm, a ResNet in integers, one of mixed formats, and one that failed, at 390 and 1400 pixels, light
and dark. Says what an audit would: console errors, requests, horizontal scroll, contrast, labels of inputs,
size. Screenshots are for looking at. Needs `pip install playwright` and a Chromium.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from normfold.report.rendering import read, rendering

RUNS = {
    "vit": ("convert", "examples.nets:vit_tiny_shapes", "--to", "rmsnorm"),
    "resnet": ("quantize", "examples/models/resnet20.pt", "--trust-module", "examples"),
    "mixed": (
        "quantize", "examples.nets:vit_tiny_shapes", "--target-size", "0.7", "--synthesis-steps", "5",
        "--max-drop", "100",
    ),
    "failed": (
        "convert", "examples/models/resnet20.pt", "--trust-module", "examples", "--require", "fold-affine>=99",
        "--require", "time<=0.01",
    ),
}  # fmt: skip
LARGEST = 2_000_000
AUDIT = """() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('');
    const style = getComputedStyle(e);
    if (!text || e.tagName === 'SCRIPT' || style.visibility === 'hidden' || !e.getClientRects().length) continue;
    if (e.closest('svg')) continue;
    const [a, b] = [luminance(style.color), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll('input, select, button, textarea'))
    if (!e.labels?.length && !e.ariaLabel) found.push(`no label: ${e.outerHTML.slice(0, 60)}`);
  for (const e of document.querySelectorAll('svg'))
    if (!e.getAttribute('aria-label')) found.push('a picture without words');
  if (!document.documentElement.lang || !document.title) found.push('no language or title');
  const levels = [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => +e.tagName[1]);
  levels.forEach((n, i) => {
    if (i && n > levels[i - 1] + 1) found.push(`a heading of level ${n} behind ${levels[i - 1]}`);
  });
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) found.push(`scrolls ${wide} pixels sideways`);
  return found;
}"""


def pages(folder: Path) -> list[Path]:
    """The pages, made by runs of the command line."""
    made = []
    for name, words in RUNS.items():
        output = folder / name
        if not list(output.glob("*.report.json")):
            command = [sys.executable, "-m", "normfold", *words, "-o", str(output)]
            ran = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
            assert ran.returncode == int(name == "failed"), command
        (report,) = output.glob("*.report.json")
        made.append(folder / f"{name}.html")
        made[-1].write_text(rendering(made[-1])(read(report)), encoding="utf-8")
    return made


def audit(browser: Any, page: Path, width: int, scheme: str) -> list[str]:
    """What is wrong with a page at a width."""
    found: list[str] = []
    tab = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab.on("console", lambda message: found.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: found.append(f"error: {error}"))
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith("file:") else found.append(asked.url),
    )
    tab.goto(page.absolute().as_uri())
    found += tab.evaluate(AUDIT)
    tab.screenshot(path=page.with_name(f"{page.stem}-{width}-{scheme}.png"), full_page=True)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found += [f"opened: {text}" for text in tab.evaluate(AUDIT)]
    box = tab.query_selector("input[type=search]")
    if box:
        box.fill("no such site")
        assert tab.query_selector("output").inner_text().startswith("0 of ")
        box.fill("")
    tab.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.report.browser")
    parser.add_argument("--out", type=Path, default=Path("out/pages"))
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    playwright = importlib.import_module("playwright.sync_api")
    wrong = 0
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        for page in pages(asked.out):
            size = page.stat().st_size
            found = [f"{size} bytes"] if size > LARGEST else []
            for width in (390, 1400):
                for scheme in ("light", "dark"):
                    found += [f"{width} {scheme}: {x}" for x in audit(browser, page, width, scheme)]
            print(f"{page.name}: {size / 1e3:.0f} kB, {len(found)} found")
            for text in found:
                print(f"    {text}")
            wrong += len(found)
        browser.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
