from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import LoadError, NormfoldError
from normfold.load import load, program_text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = torch.ones(4, 1, 1)

    def forward(self, x: Tensor, flag: object = None) -> Tensor:
        y: Tensor = self.conv(x) * self.scale
        return y.reshape(x.shape[0] * 2, -1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: batch}}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def _rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write the archive again, every member through `change(name, data) -> data`."""
    reader = torch._C.PyTorchFileReader(str(path))
    members = {name: reader.get_record(name) for name in reader.get_all_records()}
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in members.items():
        if not name.startswith(".data"):
            data = change(name, data)
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def test_a_program_loads_with_its_inputs(path: Path) -> None:
    loaded = load(path)
    assert loaded.inputs_from == "the .pt2 program"
    assert loaded.exported is not None
    assert loaded.dynamic is not None
    assert list(loaded.dynamic[0]) == [0]
    assert loaded.module(*loaded.args).shape == (4, 4 * 36 // 2)
    assert load(path, inputs=["5x3x8x8"]).args[0].shape[0] == 5


def test_a_program_under_another_suffix(path: Path) -> None:
    path = path.rename(path.with_suffix(".pt"))
    assert load(path).exported is not None


def _refused(path: Path, proof: Path, text: str = "") -> None:
    with pytest.raises(LoadError) as caught:
        load(path)
    assert not proof.exists()
    assert caught.value.exit_code == 4
    assert text in str(caught.value)
    assert "--trust-pickle" in str(caught.value)


def test_malicious_sample_inputs(path: Path, evil: object, proof: Path, tmp_path: Path) -> None:
    torch.save(((evil,), {}), tmp_path / "evil.pt")
    data = (tmp_path / "evil.pt").read_bytes()
    _rewrite(path, lambda name, old: data if "sample_inputs" in name else old)
    _refused(path, proof, "sample_inputs")


def test_malicious_plain_pickle_in_sample_inputs(path: Path, evil: object, proof: Path) -> None:
    data = pickle.dumps(evil, 2)
    _rewrite(path, lambda name, old: data if "sample_inputs" in name else old)
    _refused(path, proof)


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_malicious_pickled_tensors(
    path: Path, evil: object, proof: Path, tmp_path: Path, kind: str
) -> None:
    torch.save(evil, tmp_path / "evil.pt")
    data = (tmp_path / "evil.pt").read_bytes()

    def change(name: str, old: bytes) -> bytes:
        if name.endswith(f"{kind}_config.json"):
            config = json.loads(old)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        is_payload = f"data/{kind}/" in name and "config" not in name
        return data if is_payload else old

    _rewrite(path, change)
    _refused(path, proof)


def test_opaque_objects_and_native_code(path: Path, evil: object, proof: Path) -> None:
    def opaque(name: str, old: bytes) -> bytes:
        if not name.endswith("constants_config.json"):
            return old
        config = json.loads(old)
        next(iter(config["config"].values()))["path_name"] = "opaque_obj_0"
        return json.dumps(config).encode()

    original = path.read_bytes()
    _rewrite(path, opaque)
    _refused(path, proof, "opaque_obj_0")
    path.write_bytes(original)
    reader = torch._C.PyTorchFileReader(str(path))
    members = {n: reader.get_record(n) for n in reader.get_all_records()}
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    members["data/aotinductor/model/x.so"] = b"\x7fELF"
    for name, data in members.items():
        if not name.startswith(".data"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    _refused(path, proof, "native code")


def test_text_that_sympy_would_evaluate(path: Path, proof: Path) -> None:
    code = f"__import__('os').system('touch {proof}')"

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        start = old.index(b"Symbol('s")
        end = old.index(b'"', start)
        return old.replace(old[start:end], code.encode())

    _rewrite(path, change)
    _refused(path, proof, "shape expression")


def test_a_callee_that_is_not_an_operator(path: Path, proof: Path) -> None:
    def change(name: str, old: bytes) -> bytes:
        return old.replace(b"torch.ops.aten.conv2d.default", b"torch.os.system")

    _rewrite(path, change)
    _refused(path, proof, "torch.os.system")


@pytest.mark.parametrize(
    "text",
    ["Max('print(1)', 2)", "lambdify(x, 1)", "(1).__class__", "Symbol('a b')", "eval('1')",
     "Symbol(Symbol('x'))", "9**9**9**9", "Pow(9, 10**9)", "LShift(1, 10**9)", "s0**s1",
     "[1]", "x if y else z", "Symbol(*a)", "", "Integer(**{})"],
)  # fmt: skip
def test_expressions_outside_arithmetic(text: str) -> None:
    with pytest.raises(LoadError):
        program_text.check_expression(text, "here")


@pytest.mark.parametrize(
    "text",
    ["Symbol('s77', positive=True, integer=True)", "Mul(Integer(2), Symbol('s0'))", "s0*2 + 1",
     "FloorDiv(Symbol('s1', integer=True), Integer(4))", "Max(1, s0)", "s0**2",
     "Pow(Symbol('s0'), Integer(2))", "Pow(s0, -1)",
     "Float('1.5', precision=53)"],
)  # fmt: skip
def test_expressions_that_export_writes(text: str) -> None:
    program_text.check_expression(text, "here")


def test_a_decomposed_program(path: Path, tmp_path: Path) -> None:
    """Its nodes carry their history, which names former targets as plain text."""
    program = torch.export.load(path).run_decompositions()
    torch.export.save(program, tmp_path / "core.pt2")
    loaded = load(tmp_path / "core.pt2")
    assert loaded.args


def test_targets_and_imports_by_name() -> None:
    for good in ("torch.ops.aten.add.Tensor", "_operator.mul", "math.ceil", "torch.sym_max",
                 "torch.ops.higher_order.cond", "torch.ops.aten.__and__.Tensor"):  # fmt: skip
        program_text.check_target(good, "here")
    for bad in ("torch.hub.load", "torch.ops.load_library", "torch.ops.load_library.__call__",
                "torch.ops.aten.__class__", "_operator.attrgetter", "_operator.call",
                "os.system", "torch.load",
                "torch.ops.__class__.x.y", "math.__loader__"):  # fmt: skip
        with pytest.raises(LoadError):
            program_text.check_target(bad, "here")
    spec = json.dumps([1, {"type": "x", "context": json.dumps({"__enum__": True, "fqn": "os:x"})}])
    with pytest.raises(LoadError, match="a class to import"):
        program_text.check_document({"in_spec": spec.replace("_enum", "\\\\u005fenum")}, "here")


def test_a_program_without_inputs_needs_some(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),))
    program._example_inputs = None
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2", inputs=["2x3"])
    assert loaded.args[0].shape == (2, 3)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default", "torch.ops.aten._print.default", "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.aten._convert_indices_from_coo_to_csr.default", "torch.ops.aten.segment_reduce.default",
        "torch.ops.aten.embedding_dense_backward.default", "torch.ops.aten._ctc_loss.default",
        "torch.ops.aten.sparse_coo_tensor.indices_size", "torch.ops.higher_order.while_loop",
       
        "torch.ops.aten.record_stream.default",
        "torch.ops.c10d_functional.all_reduce.default", "torch.ops.profiler._record_function_enter.default",
        "torch.ops.inductor.resize_storage_bytes_.default", "torch.ops.aten.save.default", "torch.ops.aten.add",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation", "torch.ops.higher_order.invoke_quant",
        "_operator.setitem", "_operator.delitem", "math.prod", "torch.sym_x.y",
    ],
)  # fmt: skip
def test_operators_are_admitted_by_what_they_do(target: str) -> None:
    """`aten.from_file` with `copy_` overwrote a user's file during `inspect`."""
    with pytest.raises(LoadError, match="not a pure operator"):
        program_text.check_target(target, "here")


def test_from_file_does_not_reach_a_file(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        document = json.loads(old)
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [{"name": "filename", "arg": {"as_string": str(victim)}, "kind": 1}]
        return json.dumps(document).encode()

    _rewrite(path, change)
    _refused(path, victim.with_name("none"), "from_file")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("place", ["name", "forward_arg_names", "parameter_name", "input"])
def test_names_in_a_program_are_names(path: Path, place: str, proof: Path) -> None:
    hostile = f"x=open({str(proof)!r}, 'w')"

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        match place:
            case "name":
                return old.replace(b'"name": "x"', json.dumps({"name": hostile}).encode()[1:-1])
            case "forward_arg_names":
                document = json.loads(old)
                document["graph_module"]["module_call_graph"][0]["signature"][
                    "forward_arg_names"
                ] = [hostile]
                return json.dumps(document).encode()
            case "parameter_name":
                return old.replace(b"conv.weight", b"conv.wei\\nght")
        return old.replace(b'\\\\"builtins.dict\\\\"', b'\\\\"builtins.exec\\\\"').replace(
            b'"x"', b'"x y"'
        )

    _rewrite(path, change)
    with pytest.raises(LoadError):
        load(path)
    assert not proof.exists()


def test_an_archive_without_a_program(path: Path) -> None:
    reader = torch._C.PyTorchFileReader(str(path))
    members = {
        n: reader.get_record(n) for n in reader.get_all_records() if not n.startswith(".data")
    }
    del reader
    for extra in (None, "models/other.json"):
        writer = torch._C.PyTorchFileWriter(str(path))
        for name, data in members.items():
            if extra is not None or not name.startswith("models/"):
                writer.write_record(name, data, len(data))
        if extra is not None:
            data = members["models/model.json"]
            writer.write_record(extra, data, len(data))
        writer.write_end_of_file()
        with pytest.raises(LoadError, match="does not hold one program"):
            load(path)


@pytest.mark.parametrize("kind", ["parameter", "buffer", "tensor_constant"])
def test_names_of_tensors_do_not_run(path: Path, kind: str, proof: Path) -> None:
    """torch.fx pastes them into the text of a module that is made while loading."""
    hostile = f'training"), open({str(proof)!r}, "w"), getattr(self, "training'
    names: list[str] = []

    def change(name: str, old: bytes) -> bytes:
        if name.endswith("model.json"):
            document = json.loads(old)
            for spec in document["graph_module"]["signature"]["input_specs"]:
                if kind in spec and not names:
                    names.append(spec[kind][f"{kind}_name"])
                    spec[kind][f"{kind}_name"] = hostile
            return json.dumps(document).encode()
        if name.endswith("_config.json"):
            document = json.loads(old)
            config = document["config"]
            document["config"] = {(hostile if key in names else key): config[key] for key in config}
            return json.dumps(document).encode()
        return old

    reader = torch._C.PyTorchFileReader(str(path))
    change("model.json", reader.get_record("models/model.json"))
    del reader
    _rewrite(path, change)
    if names:
        with contextlib.suppress(LoadError):
            load(path)
    assert not proof.exists()
    assert names or kind == "buffer"


def test_keywords_of_a_program_do_not_run(tmp_path: Path, proof: Path) -> None:
    class Keyword(nn.Module):
        def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
            return x + other

    inputs = torch.randn(2, 3)
    program = torch.export.export(Keyword(), (inputs,), {"other": inputs})
    torch.export.save(program, tmp_path / "k.pt2")
    hostile = f"a#'\n:open({str(proof)!r}, 'w'),#\n"

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        document = json.loads(old)
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature.pop("forward_arg_names")
        spec = json.loads(signature["in_spec"])
        spec[1]["children_spec"][1]["context"] = json.dumps([hostile])
        signature["in_spec"] = json.dumps(spec)
        return json.dumps(document).encode()

    _rewrite(tmp_path / "k.pt2", change)
    with pytest.raises(NormfoldError):
        load(tmp_path / "k.pt2")
    assert not proof.exists()


def test_tensors_have_the_sizes_of_the_program(path: Path) -> None:
    """A fuzzer's find: a norm whose weight had no elements failed in a pass."""

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return old
        config = json.loads(old)
        config["config"]["conv.bias"]["tensor_meta"]["sizes"] = [{"as_int": 0}]
        return json.dumps(config).encode()

    _rewrite(path, change)
    with pytest.raises(LoadError, match=r"`conv.bias` is torch.float32 \(0,\)"):
        load(path)
