"""What the result computes, said in the modules of the original: new values of parameters, and other modules.

The captured graph and the result are compared node by node. Where the original read a parameter, an op that is
still there reads the tensor that this parameter has to become. A norm or a scale that is gone leaves its
parameters neutral; what is left of it at its module path is their value. What no module expresses is refused. What
was attributed is a claim: the verdict runs the module that it gives.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, op_name
from normfold.ir.provenance import call_path
from normfold.ops.table import Kind, norm_of, row_of
from normfold.targets.places import (
    Affine,
    Left,
    Place,
    axis_of,
    computes,
    inside,
    is_tensor,
    passes,
    same_op,
)
from normfold.targets.slots import Slots, arguments, own, refusal
from normfold.targets.surgery import RMSNorm, Surgery


class Attribution:
    """Compares a result with the graph that it was made of.

    Args:
        captured: the network as captured; its ``original`` is the module.
        result: baked.

    Raises:
        ExportError: the result has something that no module of the original expresses.
    """

    def __init__(self, captured: Graph, result: Graph) -> None:
        assert captured.original is not None
        self.original: nn.Module = captured.original
        self.captured, self.result = captured, result
        self.surgery = Surgery()
        self.slots = Slots(captured, result, self.surgery)
        self.places: dict[str, Place] = {}
        self.zero = set[fx.Node]()  # batch norms of branches that another branch computes as well
        self.neutral: dict[
            fx.Node, str
        ] = {}  # batch norms that are gone, and the name of their bias
        self._compare()
        for place in self.places.values():
            self._assemble(place)
        self._remove()
        self._move_biases()
        self.slots.finish()

    def _place(self, node: fx.Node) -> Place:
        path = call_path(node)
        return self.places.setdefault(path, Place(path))

    def _compare(self) -> None:
        mine = {node.name: node for node in self.result.nodes if computes(node)}
        theirs: set[str] = set()
        for node in self.captured.nodes:
            if not computes(node):
                continue
            twin = mine.get(node.name)
            if twin is not None and not same_op(twin, node):
                twin = None
            if twin is not None:
                theirs.add(node.name)
            if norm_of(node):
                self._place(node).cores.append(node)
                if twin is not None:
                    self._place(twin).left.append(twin)
            elif twin is not None:
                if not passes(node):
                    self._place(node).stays = True
                self.slots.pair(node, twin)
            elif any(is_static(value) for value in arguments(node).values()):
                self._place(node).lost.append(node)
            elif _adds(node) and len(node.all_input_nodes) == 2:
                self._merged(node)
        for node in mine.values():
            if node.name not in theirs and not passes(node):
                self._place(node).left.append(node)

    def _merged(self, node: fx.Node) -> None:
        """A sum that is not there any more: one of its branches, a batch norm alone, adds nothing."""
        for source in node.all_input_nodes:
            core = source.args[0] if op_name(source) == "getitem" else source
            if isinstance(core, fx.Node) and norm_of(core, "batch"):
                self.zero.add(core)
                return
        raise refusal(
            f"a sum in the code of `{call_path(node) or 'forward'}` is not there any more"
        )

    def _assemble(self, place: Place) -> None:
        if not (place.cores or place.lost or place.left):
            return
        for node in place.lost:
            if row_of(node).kind not in (Kind.PRODUCT, Kind.ADD):
                raise refusal(f"`{op_name(node)}` of `{place.path}` is not there any more")
        if len(place.cores) > 1:
            self._assemble_many(place)
            return
        left = Left(place, self.slots)
        core = place.cores[0] if place.cores else None
        became = left.core is not None and _kind(left.core) == "rms-norm"
        if became and self._kind(place, core) != "rms-norm":
            assert left.core is not None
            self._became_rms(place, left)
        elif core is not None and norm_of(core, "batch"):
            self._batch_norm(core, left.affine)
            self._arithmetic(place, Affine())
        elif core is not None and left.core is None:
            if left.affine:
                raise refusal(f"`{op_name(core)}` of `{place.path}` became a scale and a shift")
            self.surgery.gone_norms.append(place.module)
        elif core is not None:
            self._norm(core, left.affine)
            self._arithmetic(place, Affine())
        else:
            self._arithmetic(place, left.affine)

    def _kind(self, place: Place, core: fx.Node | None) -> str:
        if core is not None:
            return _kind(core)
        site = self.result.sites.get(place.path) or self.result.sites.get(place.module)
        return "" if site is None else site.kind

    def _assemble_many(self, place: Place) -> None:
        """Several norms in the code of one module: each is as it was but for its affine, or gone."""
        twins = {node.name: node for node in place.left}
        for core in place.cores:
            twin = twins.pop(core.name, None)
            if twin is not None:
                single = Place(place.path, [core], [], [twin])
                self._norm(core, Left(single, self.slots).affine)
            elif norm_of(core, "batch"):
                self._batch_norm(core, Affine())
            else:
                raise refusal(
                    f"one of several norms in the code of `{place.path}` became another one"
                )
        if twins:
            raise refusal(f"`{op_name(next(iter(twins.values())))}` in the code of `{place.path}`")
        self._arithmetic(place, Affine())

    def _became_rms(self, place: Place, left: Left) -> None:
        core = left.core
        path = place.module
        if core is None or not path or place.stays or self._children_left(path):
            raise refusal(f"a LayerNorm in the code of `{path or 'forward'}` became an RMSNorm")
        shape = argument(core, "normalized_shape")
        if len(shape) != 1:
            raise refusal(f"the RMSNorm of `{path}` runs over {len(shape)} axes")
        scale, shift = left.affine.scale, left.affine.shift
        self.surgery.norms[path] = RMSNorm(
            int(shape[0]),
            argument(core, "eps"),
            axis_of(core, path),
            scale is not None,
            shift is not None,
            core.meta["val"].dtype,
        )
        self.slots.replace(path, {"weight": scale, "bias": shift})

    def _norm(self, core: fx.Node, affine: Affine) -> None:
        values = {"weight": affine.scale, "bias": affine.shift}
        for name, value in values.items():
            slot = own(core, name)
            if slot is not None:
                fill = 1.0 if name == "weight" else 0.0
                self.slots.assign(slot, fill if value is None else value, core)
            elif value is not None:
                self.slots.make(core, name, value)

    def _batch_norm(self, core: fx.Node, affine: Affine) -> None:
        """a x + b: statistics 0 and 1 - eps, weight a, bias b; without these, b and a in the statistics."""
        eps = float(argument(core, "eps"))
        slots = {
            name: own(core, name) for name in ("weight", "bias", "running_mean", "running_var")
        }
        mean, variance = slots["running_mean"], slots["running_var"]
        if mean is None or variance is None:
            raise refusal(f"`{op_name(core)}` of `{call_path(core)}` has no statistics")
        scale, shift = affine.scale, affine.shift
        if core in self.zero:
            self._place(core).stays = True
            scale = torch.zeros((), dtype=torch.float64)
        if slots["weight"] is not None and slots["bias"] is not None:
            self.slots.assign(mean, 0.0, core)
            self.slots.assign(variance, 1.0 - eps, core)
            self.slots.assign(slots["weight"], 1.0 if scale is None else scale, core)
            self.slots.assign(slots["bias"], 0.0 if shift is None else shift, core)
            if scale is None and shift is None and slots["bias"].op == "get_attr":
                self.neutral[core] = self.slots.key(str(slots["bias"].target), core)
            return
        scale = torch.ones((), dtype=torch.float64) if scale is None else scale
        spread = scale.square().reciprocal() - eps
        if bool((scale <= 0).any()) or bool((spread < 0).any()):
            raise refusal(f"the batch norm `{call_path(core)}` has no weight, and needs one")
        self.slots.assign(variance, spread, core)
        self.slots.assign(mean, 0.0 if shift is None else -shift / scale, core)

    def _arithmetic(self, place: Place, affine: Affine) -> None:
        """Give the scales and shifts of a place what is left: the first of each takes it, others nothing."""
        order = [row_of(node).kind is Kind.PRODUCT for node in place.lost]
        scale, shift = affine.scale, affine.shift
        if shift is not None and scale is not None and order[:1] == [False]:
            shift = shift / scale  # g (x + s)
        for node, gains in zip(place.lost, order, strict=True):
            value = scale if gains else shift
            if gains:
                scale = None
            else:
                shift = None
            reads = [part for part in arguments(node).values() if is_static(part)]
            if value is not None and argument(node, "alpha", 1) != 1:
                raise refusal(f"`{op_name(node)}` of `{place.path}` scales what it adds")
            given: float | Tensor = (1.0 if gains else 0.0) if value is None else value
            if row_of(node).inverts:
                given = 1 / given if gains else -given
            self.slots.assign(reads[0], given, node)
        if scale is not None or shift is not None:
            what = "scale" if scale is not None else "shift"
            raise refusal(f"a {what} in `{place.path or 'forward'}`, which has no parameter for it")

    def _remove(self) -> None:
        """Modules of which nothing is left become Identity, or the one child that is left."""
        by_module: dict[str, list[Place]] = defaultdict(list)
        for place in self.places.values():
            by_module[place.module].append(place)
        for path, places in by_module.items():
            empty = not any(place.left or place.stays for place in places)
            had = any(place.cores or place.lost for place in places)
            child = self._child_left(path) if path and empty and had else None
            if child is None:
                if path in self.surgery.gone_norms:
                    raise refusal(f"a norm in the code of `{path or 'forward'}` is gone")
                continue
            self.surgery.gone[path] = child
            self.slots.replace(path, {})

    def _children_left(self, path: str) -> set[str]:
        """Names of children of a module that compute something in the result."""
        start = f"{path}."
        below = [
            place.module.removeprefix(start)
            for place in self.places.values()
            if place.module.startswith(start) and (place.stays or place.left)
        ]
        return {name.split(".")[0] for name in below}

    def _child_left(self, path: str) -> str | None:
        """The child that a module can be replaced by, "" for Identity; None where it has to stay."""
        left = self._children_left(path)
        region = [node for node in self.captured.nodes if computes(node) and inside(node, path)]
        own = set(region)
        sources = {
            part
            for node in region
            for part in node.all_input_nodes
            if part not in own and not is_static(part) and is_tensor(part)
        }
        results = [node for node in region if any(user not in own for user in node.users)]
        results = [node for node in results if is_tensor(node)]
        calls = len({call_path(node) for node in region if call_path(node).split("@")[0] == path})
        if len(left) > 1 or len(sources) > calls or len(results) > calls:
            return None
        try:
            module = self.original.get_submodule(path)
        except AttributeError:
            return None
        name = next(iter(left), "")
        if name and module.get_submodule(name).state_dict():
            return None
        return name

    def _move_biases(self) -> None:
        """Where a batch norm is gone, its bias can be that of the convolution in front of it."""
        for core, bias in self.neutral.items():
            source = core.args[0]
            if isinstance(source, fx.Node) and set(source.users) == {core}:
                made = f"{call_path(source).split('@')[0]}.bias"
                if made in self.surgery.made:
                    self.surgery.moves[made] = bias


def _kind(core: fx.Node) -> str:
    norm = norm_of(core)
    assert norm is not None
    return norm.kind


def _adds(node: fx.Node) -> bool:
    row = row_of(node)
    return row.kind is Kind.ADD and not row.inverts
