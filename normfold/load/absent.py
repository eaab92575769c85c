"""What to say of a MODEL that is not on this machine: a URL, the name of a model on a hub, or a wrong path."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from normfold.errors import LoadError

_URL = re.compile(r"^([a-z][a-z0-9+]+)://", re.IGNORECASE)
_HUB = re.compile(r"^(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(.+)$")
_PAGE = re.compile(r"^([^/?#]+/[^/?#]+)(?:/(?:resolve|blob)/[^/]+/([^?#]+))?")
_NAME = re.compile(r"^[A-Za-z0-9][\w.\-]*(?:/[\w.\-]+)?$")
# not every name with a dot is a file's: `Qwen/Qwen2.5-7B`
_FILES = {
    "bin", "ckpt", "engine", "gguf", "gz", "h5", "hdf5", "json", "npy", "npz", "onnx", "pb", "pickle", "pkl",
    "pt", "pt2", "pth", "py", "safetensors", "tar", "tflite", "toml", "xml", "yaml", "yml", "zip",
}  # fmt: skip
_NOTHING = "normfold downloads nothing"


def absent(text: str, forms: str) -> LoadError:
    """The error for a MODEL that is no path here; ``forms`` says what it may be."""
    if _URL.match(text):
        return _of_url(text)
    named = _NAME.match(text) and text.rpartition(".")[2].lower() not in _FILES
    if named and text.count("/") == 1 and not Path(text).parent.exists():
        return LoadError(
            f"there is no folder `{text}` here: as the name of a model on the Hugging Face hub it must be "
            f"downloaded first, {_NOTHING}",
            hint=_download(text),
        )
    if named and "/" not in text:
        known = _timm_names()
        if text.partition(".")[0] in known:
            hint = f"timm has a model of that name: give `timm:{text}`"
        else:
            hint = (
                f"if it is a model on the Hugging Face hub, download it first ({_NOTHING}): "
                f"{_download(text)}; otherwise give {forms}"
            )
        return LoadError("there is no such file or folder", where=text, hint=hint)
    return LoadError("there is no such file or folder", where=text, hint=f"give {forms}")


def _of_url(text: str) -> LoadError:
    hub = _HUB.match(text)
    page = _PAGE.match(hub[1]) if hub else None
    if page and page[2]:
        hint = (
            f"`hf download {page[1]} {page[2]} --local-dir DIR`, then give `{Path('DIR', page[2])}`"
        )
    elif page:
        hint = _download(page[1])
    else:
        hint = "download it, then give the file or the folder"
    return LoadError(f"a URL is not loaded: {_NOTHING}", where=text, hint=hint)


def _download(name: str) -> str:
    return f"`hf download {name} --local-dir DIR`, then give the folder `DIR`"


def _timm_names() -> set[str]:
    if find_spec("timm") is None:
        return set()
    try:
        import timm

        return set(timm.list_models())
    except Exception:  # a broken installation: then nothing is known of its names
        return set()
