"""Install the wheel with the lowest and the newest packages that pyproject.toml admits, and run a smoke suite.

python -m tests.compat                       # both, with this Python
python -m tests.compat --at lowest --python python3.13
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LOWEST = re.compile(r"^([\w.-]+)>=([\d.]+)$")
_SHOWN = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "transformers", "timm", "numpy")


def lowest() -> list[str]:
    """``name==version`` of every dependency with a lower bound, those of the extra ``hub`` too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["hub"]]
    found = (_LOWEST.match(text) for text in asked)
    return [f"{match[1]}=={match[2]}" for match in found if match]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command without the clone on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, capture_output=True, check=False
    )


def must(*command: str | Path, cwd: Path) -> str:
    """Its standard output; SystemExit where it fails."""
    ran = run(*command, cwd=cwd)
    if ran.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        )
    return ran.stdout


def environment(at: str, python: str, wheel: Path, folder: Path) -> Path:
    """A new virtual environment with the wheel in it; its Python."""
    must(python, "-m", "venv", folder / "venv", cwd=folder)
    own = folder / "venv/bin/python"
    pip = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    pins = lowest() if at == "lowest" else []
    (folder / "pins.txt").write_text("\n".join(pins) + "\n")
    must(*pip, "-c", folder / "pins.txt", f"{wheel}[hub]", cwd=folder)
    if run(own, "-c", "import torchvision", cwd=folder).returncode:
        # of another build than torch, which breaks every package that would use it
        must(own, "-m", "pip", "uninstall", "--quiet", "-y", "torchvision", cwd=folder)
    return own


def main() -> int:
    """Run the suite in every environment that was asked for; 1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--at", choices=("lowest", "newest"), action="append")
    parser.add_argument("--python", action="append", help="an interpreter; this one by default")
    chosen = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="normfold-compat-") as name:
        base = Path(name)
        must(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            base,
            ROOT,
            cwd=ROOT,
        )
        (wheel,) = base.glob("*.whl")
        for python in chosen.python or [sys.executable]:
            for at in chosen.at or ["lowest", "newest"]:
                folder = base / f"{Path(python).name}-{at}"
                folder.mkdir()
                own = environment(at, python, wheel, folder)
                text = "import sys, importlib.metadata as m; print(sys.version.split()[0], *("
                text += f"f'{{x}} {{m.version(x)}}' for x in {_SHOWN}), sep=', ')"
                print(f"{at}: Python {must(own, '-c', text, cwd=folder).strip()}", flush=True)
                shutil.copy(ROOT / "tests/compat/smoke.py", folder)
                ran = run(own, "smoke.py", cwd=folder)
                print(ran.stdout + ran.stderr[-2000:], flush=True)
                failed |= ran.returncode != 0
                shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
