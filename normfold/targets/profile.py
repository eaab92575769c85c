"""What each layer of an ONNX file takes in onnxruntime on the CPU: the runtime's own profile, by module path.

The runtime fuses, reorders and renames ops. Its optimised model is therefore written out, its nodes are given our
own names and it is run as it is, so that every time in the profile belongs to a node that is known. A node stands
for the layer whose op or tensor it is named after, else for the layer that reads what it makes.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from normfold.targets.runtime import optimised

_RUNS, _WARM_UP = 12, 3
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_LAYOUTS = ("Transpose", "ReorderInput", "ReorderOutput")
_ADDED = re.compile(r"_token_\d+|_nchwc")  # what the runtime adds to names


@dataclass(frozen=True)
class Profile:
    """Median seconds of a run, by layer: the module path, or the op's own name where it has none.

    Attributes:
        layers: what its ops take, but for conversions: between integers and floats, and from one layout to another
            where the runtime put them in.
        conversions: what those of the tensors that it makes take.
        sizes: elements and seconds of every conversion.
    """

    layers: dict[str, float]
    conversions: dict[str, float]
    sizes: tuple[tuple[int, float], ...]

    def conversion(self, elements: int) -> float:
        """Seconds of the conversion of a tensor: a constant and a share for every element, from those measured."""
        if not self.sizes:
            return 0.0
        call = min(seconds for _, seconds in self.sizes)
        above = sum(seconds - call for _, seconds in self.sizes)
        return call + above * elements / max(1, sum(count for count, _ in self.sizes))


def layer_of(name: str) -> str:
    """The layer that an op of our files belongs to, by its name (`normfold.targets.cleanup.label`)."""
    return name.rpartition("/")[0]


def profile(path: str | os.PathLike[str], inputs: Sequence[Tensor]) -> Profile:
    """Run a file of ours a dozen times under onnxruntime's profiler.

    Args:
        inputs: in the order of the file.

    Raises:
        EnvironmentMissing: onnxruntime is not installed.
        ExportError: it refuses the file or the inputs.
    """
    original = onnx.load(path, load_external_data=False).graph
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "optimised.onnx"
        optimised(path, made)
        model = onnx.load(made)
        for at, node in enumerate(model.graph.node):
            node.name, node.doc_string = f"op{at}", node.name
        onnx.save(model, made)
        times = _times(made, inputs, Path(folder))
    names = {node.name for node in original.node}
    owners = _owners(list(original.node), list(model.graph.node))
    layers: dict[str, float] = defaultdict(float)
    conversions: dict[str, float] = defaultdict(float)
    sizes = []
    for node in model.graph.node:
        seconds, elements = times.get(node.name, (0.0, 0))
        added = node.op_type in _LAYOUTS and _plain(node.doc_string) not in names
        converts = node.op_type in _CONVERSIONS or added
        if converts:
            sizes.append((elements, seconds))
        if owners.get(node.name):
            (conversions if converts else layers)[owners[node.name]] += seconds
    return Profile(dict(layers), dict(conversions), tuple(sizes))


def _times(path: Path, inputs: Sequence[Tensor], folder: Path) -> dict[str, tuple[float, int]]:
    """Median seconds of each node, and the elements that it makes."""
    from normfold.targets.runtime import RuntimeSession

    session = RuntimeSession(path, "none", spin=True, profile=folder / "profile")
    run = session.prepare(inputs)
    for _ in range(_RUNS):
        run()
    events = json.loads(Path(session.end_profile()).read_text())
    found: dict[str, list[float]] = defaultdict(list)
    elements: dict[str, int] = {}
    for event in events:
        name, _, what = event["name"].rpartition("_kernel_")
        if event.get("cat") != "Node" or what != "time":
            continue
        found[name].append(1e-6 * event["dur"])
        shapes = event["args"].get("output_type_shape", [])
        elements[name] = sum(int(np.prod(shape)) for one in shapes for shape in one.values())
    return {
        name: (statistics.median(values[_WARM_UP:] or values), elements[name])
        for name, values in found.items()
    }


def _owners(original: Sequence[Any], nodes: Sequence[Any]) -> dict[str, str]:
    """The layer of every node of the optimised model, by the node's name; its own old name is in its text."""
    known: dict[str, str] = {}
    for node in original:
        known[node.name] = layer_of(node.name)
        known |= {name: layer_of(node.name) for name in node.output}
    makers = {name: node for node in nodes for name in node.output}
    found: dict[str, str] = {}
    for node in reversed(nodes):  # readers first
        names = (node.doc_string, *node.output)
        own = next((known[n] for n in map(_plain, names) if n in known), "")
        found[node.name] = own or found.get(node.name, "")
        for name in node.input:  # what has no name of its own belongs to the first that reads it
            if name in makers:
                found.setdefault(makers[name].name, found[node.name])
    return found


def _plain(name: str) -> str:
    return _ADDED.sub("", name)
