"""What a pickle may not make: attributes that answer for methods, callables, wrappers, tensors that do not fit."""

from __future__ import annotations

import collections
import functools
import importlib
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.errors import LoadError
from normfold.load import load, pickled
from normfold.load.library import LAYERS, PURE
from normfold.load.machine import read_records
from normfold.load.records import Made, Name
from normfold.load.trust import Trust
from tests.load.conftest import Evaluates, Writes
from tests.load.test_load_pickled import TINY, _checkpoint


def refused(content: Any, path: Path, *names: str) -> str:
    """Save it, and see it refused; the message."""
    if not isinstance(content, bytes):
        torch.save(content, path)
    with pytest.raises(LoadError) as caught:
        pickled.read(path, Trust())
    for name in names:
        assert name in str(caught.value), str(caught.value)
    return str(caught.value)


def with_attribute(name: str, value: Any, module: nn.Module | None = None) -> nn.Module:
    made = nn.Sequential(nn.Linear(3, 3)) if module is None else module
    made.__dict__[name] = value
    return made


@pytest.mark.parametrize(
    "name",
    [
        "parameters",
        "named_modules",
        "eval",
        "to",
        "state_dict",
        "__call__",
        "children",
        "_apply",
        "named_buffers",
    ],
)
def test_attributes_do_not_answer_for_methods(name: str, tmp_path: Path) -> None:
    """Three admitted classes were chained to `exec` through an attribute called `parameters`."""
    refused(with_attribute(name, F.relu), tmp_path / "m.pt", name)
    refused(with_attribute(name, "plain text"), tmp_path / "m.pt", name)
    refused(with_attribute(name, nn.Linear(2, 2)), tmp_path / "m.pt", name)


def test_attributes_do_not_answer_for_properties_or_calls(tmp_path: Path) -> None:
    bert = transformers.BertModel(transformers.BertConfig(**TINY))
    refused(with_attribute("device", "cpu", bert), tmp_path / "m.pt", "device")  # a property
    llama = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(vocab_size=20, num_key_value_heads=2, **TINY)
    )
    prefix = with_attribute("base_model_prefix", "push_to_hub", llama)
    refused(prefix, tmp_path / "m.pt", "base_model_prefix")
    refused(with_attribute("forward", F.relu), tmp_path / "m.pt", "forward")
    other = nn.Linear(2, 2)
    refused(with_attribute("forward", other.extra_repr), tmp_path / "m.pt", "forward")
    module = nn.Sequential(nn.Linear(3, 3))
    state = {**module.__dict__, "_compiled_call_impl": F.relu}
    refused(Stated(nn.Sequential, state), tmp_path / "m.pt", "_compiled_call_impl")


class Stated:
    """Pickles as an object of ``kind`` with this state."""

    def __init__(self, kind: Any, state: Any, args: tuple[Any, ...] = ()) -> None:
        self.kind, self.state, self.args = kind, state, args

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pickle compares it with what is made
        return self.kind

    def __reduce__(self) -> Any:
        import copyreg

        return copyreg.__newobj__, (self.kind, *self.args), self.state  # type: ignore[attr-defined]


class Called:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.mark.parametrize(
    "value",
    [
        print, eval, torch.load, torch.hub.load, importlib.import_module, functools.reduce,
        vars(nn.functional)["handle_torch_function"], timm.create_model, torchvision.io.write_png,
        functools.partial(print, 1), functools.partial(torch.load, "x"), collections.Counter, nn.Module.apply,
    ],
    ids=lambda value: getattr(value, "__name__", "partial"),
)  # fmt: skip
def test_callables_are_no_data(value: Any, tmp_path: Path) -> None:
    refused(with_attribute("helper", value), tmp_path / "m.pt")
    refused(with_attribute("helper", [{"a": (value,)}]), tmp_path / "m.pt")
    refused({"w": torch.ones(2), "helper": value}, tmp_path / "m.pt")


def test_modules_are_no_data(tmp_path: Path) -> None:
    for module, name in (
        ("torch", "nn"),
        ("torch", "hub"),
        ("importlib", "machinery"),
        ("timm", "models"),
    ):
        _checkpoint(tmp_path / "m.pt", f"c{module}\n{name}\n".encode())
        refused(b"", tmp_path / "m.pt", f"{module}.{name}")


@pytest.mark.parametrize("table", ["_modules", "_parameters", "_buffers"])
def test_tables_of_a_module_are_real_dictionaries(table: str, tmp_path: Path) -> None:
    strange: list[Any] = [
        collections.defaultdict(list),
        collections.Counter(),
        [],
        Stated(nn.Linear, {}),
    ]
    for kind in strange:
        state = {**nn.Linear(2, 2).__dict__, table: kind}
        refused(Stated(nn.Linear, state), tmp_path / "m.pt", table)
    state = {**nn.Linear(2, 2).__dict__, table: {"x": "text"}}
    refused(Stated(nn.Linear, state), tmp_path / "m.pt", table)
    for name in ("a.b", "", "a\nb", "\x1b[2J"):
        state = {**nn.Linear(2, 2).__dict__, table: {name: None}}
        refused(Stated(nn.Linear, state), tmp_path / "m.pt", table)


def test_hooks_are_those_of_torch(tmp_path: Path) -> None:
    for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        state = {**nn.Linear(2, 2).__dict__, table: collections.OrderedDict({0: F.relu})}
        refused(Stated(nn.Linear, state), tmp_path / "m.pt", table)
    state = {
        **nn.Linear(2, 2).__dict__,
        "_load_state_dict_pre_hooks": collections.OrderedDict({0: print}),
    }
    refused(Stated(nn.Linear, state), tmp_path / "m.pt", "print")


def test_arguments_of_calls_hold_no_names(evil: object, tmp_path: Path) -> None:
    """Nested rebuilds called refused names."""
    storage = torch.ones(4)
    calls = (
        Called(torch._utils._rebuild_parameter, torch.ones(2), True, print),
        Called(torch._utils._rebuild_parameter, Called(eval, "1"), True, collections.OrderedDict()),
        Called(
            torch._tensor._rebuild_from_type_v2,
            torch._utils._rebuild_wrapper_subclass,
            Tensor,
            (),
            {},
        ),
        Called(
            torch._tensor._rebuild_from_type_v2,
            torch._utils._rebuild_tensor_v2,
            nn.Linear,
            (storage,),
            {},
        ),
        Called(torch._utils._rebuild_device_tensor_from_numpy, 1, 2, 3, 4),
        Called(torch.Size, [print]),
        Called(collections.OrderedDict, [["a", evil]]),
    )
    for call in calls:
        refused({"w": torch.ones(2), "x": call}, tmp_path / "m.pt")


def test_classes_that_make_code_of_text(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    refused(graph, tmp_path / "m.pt", "torch.fx")
    for kind in (torch.jit.ScriptModule, torch.fx.GraphModule, nn.parallel.DistributedDataParallel):
        refused(Stated(kind, {}), tmp_path / "m.pt")
    refused(Stated(torch._dynamo.OptimizedModule, {}), tmp_path / "m.pt", "OptimizedModule")


def test_constructors_do_not_run(tmp_path: Path) -> None:
    for call in (Called(nn.Linear, 3, 3), Called(timm.layers.Mlp, 3), Called(torch.nn.Identity)):
        refused(call, tmp_path / "m.pt", "the file would call it while loading")
    refused(
        Stated(nn.Linear, nn.Linear(2, 2).__dict__, (7,)), tmp_path / "m.pt", "made with arguments"
    )
    refused(Stated(nn.Linear, [1, 2]), tmp_path / "m.pt", "not a dictionary")


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((5,), (1,), 0), ((2, 3), (3, 1), 0), ((2,), (1,), 3), ((1,), (1,), 4), ((2,), (-1,), 1), ((-1,), (1,), 0),
     ((2**40,), (0,), 0), ((2,), (2**61,), 0), ((True,), (1,), 0), ((1.0,), (1,), 0), ((2,), (), 0)],
)  # fmt: skip
def test_tensors_fit_their_storage(size: Any, stride: Any, offset: int, tmp_path: Path) -> None:
    storage = torch.ones(4).storage()
    call = Called(
        torch._utils._rebuild_tensor_v2,
        storage,
        offset,
        size,
        stride,
        False,
        collections.OrderedDict(),
    )
    refused({"w": call}, tmp_path / "m.pt", "damaged")


def test_sparse_tensors_are_consistent(tmp_path: Path) -> None:
    """One that is not ends in a segmentation fault."""
    right = torch.eye(3).to_sparse()
    torch.save({"w": right, "v": torch.eye(3).to_sparse_csr()}, tmp_path / "m.pt")
    found = pickled.read(tmp_path / "m.pt", Trust())
    assert torch.equal(found["w"].to_dense(), torch.eye(3))
    assert torch.equal(found["v"].to_dense(), torch.eye(3))
    indices = torch.tensor([[0, 100], [0, 100]])
    rebuild: Any = torch._utils._rebuild_sparse_tensor
    layout = Called(torch.serialization._get_layout, "torch.sparse_coo")
    for parts in (
        (indices, torch.ones(2), (3, 3), False),
        (indices, torch.ones(1), (200, 200), False),
    ):
        refused({"w": Called(rebuild, layout, parts)}, tmp_path / "m.pt", "damaged")


def test_views_parameters_and_other_types_come_back(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    content = {
        "transposed": base.t(), "part": base[1:, ::2], "same": base, "half": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]), "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "empty": torch.empty(0, 3), "scalar": torch.tensor(3), "grown": torch.ones(1).expand(5),
        "float8": torch.ones(2).to(torch.float8_e4m3fn), "parameter": nn.Parameter(base),
    }  # fmt: skip
    content["parameter"].__dict__["_no_weight_decay"] = True
    for new in (True, False):
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=new)
        found = pickled.read(tmp_path / "m.pt", Trust())
        for name, value in content.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(
                found[name].float() if name == "float8" else found[name],
                value.float() if name == "float8" else value,
            )
        assert found["same"].data_ptr() == found["transposed"].data_ptr()
        assert isinstance(found["parameter"], nn.Parameter)
        assert vars(found["parameter"]) == {"_no_weight_decay": True}


def test_numbers_of_numpy_come_back(tmp_path: Path) -> None:
    import numpy as np

    content = {
        "epoch": np.int64(3), "loss": np.float32(0.5), "array": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)), "w": torch.ones(2),
    }  # fmt: skip
    torch.save(content, tmp_path / "m.pt")
    found = pickled.read(tmp_path / "m.pt", Trust())
    assert all(np.array_equal(found[name], content[name]) for name in content)  # type: ignore[arg-type]
    refused({"a": np.array([print], dtype=object)}, tmp_path / "m.pt")


def test_names_with_a_meaning_to_python(tmp_path: Path) -> None:
    for table in ("_modules", "_parameters", "_buffers"):
        state = {**nn.Linear(2, 2).__dict__, table: {"__deepcopy__": None}}
        refused(Stated(nn.Linear, state), tmp_path / "m.pt", "__deepcopy__")
    parameter = nn.Parameter(torch.ones(2))
    parameter.__dict__["__array_interface__"] = {"data": (64, False)}
    refused({"w": parameter}, tmp_path / "m.pt", "__array_interface__")


def test_compressed_archives_are_not_torchs(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", b"\x80\x02}.")
        file.writestr("m/version", b"3\n")
    refused(b"", tmp_path / "m.pt", "compressed")


def test_the_second_reading_of_an_archive_is_refused(tmp_path: Path) -> None:
    import zipfile

    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    right = (tmp_path / "m.pt").read_bytes()
    for name in ("other/data.pkl", "m/data.pkl"):
        (tmp_path / "m.pt").write_bytes(right)
        with zipfile.ZipFile(tmp_path / "m.pt", "a") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.writestr(name, b"\x80\x02}.")
        refused(b"", tmp_path / "m.pt")


def test_a_method_of_its_own_as_forward_and_library_data(tmp_path: Path) -> None:
    """What real networks carry: fasternet's `forward`, classes as values, activations, partial functions."""
    model = timm.create_model("fasternet_t0").eval()
    torch.save(model, tmp_path / "m.pt")
    loaded = pickled.read(tmp_path / "m.pt", Trust())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
    net = with_attribute("act", F.gelu, with_attribute("norm_layer", nn.BatchNorm2d))
    net.__dict__["blocks"] = [timm.layers.Mlp]
    net.__dict__["partial"] = functools.partial(nn.LayerNorm, eps=1e-6)
    torch.save(net, tmp_path / "m.pt")
    found: Any = pickled.read(tmp_path / "m.pt", Trust())
    assert (found.act, found.norm_layer) == (F.gelu, nn.BatchNorm2d)
    assert found.partial.keywords == {"eps": 1e-6}
    assert not callable(found.blocks[0])


def test_data_parallel_and_odd_keys(tmp_path: Path) -> None:
    net = nn.ModuleDict({"en-US": nn.Linear(2, 2), "class": nn.ReLU(), 'say "hi"': nn.Linear(2, 2)})
    torch.save(nn.DataParallel(nn.Sequential(net)), tmp_path / "m.pt")
    found: Any = pickled.read(tmp_path / "m.pt", Trust())
    assert list(found.module[0]) == list(net)


def test_listed_names_exist() -> None:
    """A class that torch moved would be refused without anybody noticing."""
    for name in LAYERS | {name for name in PURE if name.module.startswith("torch")}:
        assert hasattr(importlib.import_module(name.module), name.name), name


def test_records_do_not_import() -> None:
    import pickle
    import sys

    data = b"\x80\x02cthis_is_not_there\nRun\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    record = read_records(data, "x")
    assert isinstance(record, Made)
    assert record.callee == Name("this_is_not_there", "Run")
    assert record.states == [{"a": 1}]
    assert "this_is_not_there" not in sys.modules
    for protocol in (2, 3, 4, 5):
        plain = {"a": [1, 2.5, None, True, "é", 2**70, (1, (2,)), {3}, frozenset({4})], 7: {}}
        assert read_records(pickle.dumps(plain, protocol), "x")["a"][:6] == plain["a"][:6]  # type: ignore[index]


@pytest.mark.parametrize("kind", [Writes, Evaluates])
def test_what_torch_before_1_6_wrote(kind: Callable[[Path], object], tmp_path: Path) -> None:
    proof = tmp_path / "pwned"
    torch.save({"x": kind(proof)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    refused(b"", tmp_path / "m.pt")
    assert not proof.exists()
    net = torchvision.models.resnet18(num_classes=3)
    torch.save(net, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "m.pt").module.state_dict()["fc.weight"], net.fc.weight)
    data = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(data[:-100])
    refused(b"", tmp_path / "m.pt", "breaks off")
    grown = data.replace(struct.pack("<q", net.fc.weight.numel()), struct.pack("<q", 2**60))
    (tmp_path / "m.pt").write_bytes(grown)
    refused(b"", tmp_path / "m.pt")
