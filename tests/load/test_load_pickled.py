from __future__ import annotations

import importlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from normfold.errors import LoadError, UsageError
from normfold.load import load

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16}  # fmt: skip


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(vocab_size=50, **TINY))


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def vit() -> Any:
    return transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **TINY))


def mamba() -> Any:
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50)
    return transformers.MambaModel(config)


LIBRARY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm-resnet10t": (lambda: timm.create_model("resnet10t"), "timm pretrained_cfg"),
    "timm-mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050"), "timm pretrained_cfg"),
    "timm-vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32),
        "timm pretrained_cfg",
    ),
    "timm-fasternet": (lambda: timm.create_model("fasternet_t0"), "timm pretrained_cfg"),
    "tv-resnet18": (lambda: torchvision.models.resnet18(), "first layer's shape (conv1: 3"),
    "tv-mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), "first layer's shape"),
    "tv-vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16),
        "declared 32x32",
    ),
    "hf-bert": (bert, "HF config"),
    "hf-gpt2": (gpt2, "HF config"),
    "hf-vit": (vit, "HF config"),
    "hf-mamba": (mamba, "HF config"),
    "nn-transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True), 1
        ),
        "first layer's shape (layers.0.self_attn",
    ),
    "nn-spectral": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU()),
        "first layer's shape (0: 4 features",
    ),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_library_models_load_without_trust(name: str, tmp_path: Path) -> None:
    make, origin = LIBRARY[name]
    model = make()
    torch.save(model, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt")
    assert origin in loaded.inputs_from
    assert not any(m.training for m in loaded.module.modules())
    assert "model was in train mode: put in eval" in loaded.notes or name.startswith("hf")
    assert (loaded.args or tuple(loaded.kwargs.values()))[0].shape[0] == 2
    ours, theirs = loaded.module.state_dict(), model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    again = load(tmp_path / "m.pt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.args, again.args, strict=True))


def _refused(path: Path, proof: Path, *names: str, **options: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(path, **options)
    assert not proof.exists()
    assert caught.value.exit_code == 4
    for name in names:
        assert name in str(caught.value)
    return str(caught.value)


NAMES = ("system", "eval")


def test_a_malicious_reduce_is_refused(evil: object, proof: Path, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1), "x": evil}, tmp_path / "m.pt")
    text = _refused(tmp_path / "m.pt", proof, "nothing in it was executed", "--trust-pickle")
    assert any(f".{name} (" in text for name in NAMES)


def test_a_malicious_reduce_inside_a_module_is_refused(
    evil: object, proof: Path, tmp_path: Path
) -> None:
    model = torchvision.models.resnet18(num_classes=2)
    model.layer1[0].conv1.__dict__["note"] = [evil]
    torch.save(model, tmp_path / "m.pt")
    _refused(tmp_path / "m.pt", proof)


@pytest.mark.parametrize("legacy", ["pickle", "torch"])
def test_old_and_plain_pickles_are_refused_by_name(
    evil: object, proof: Path, tmp_path: Path, legacy: str
) -> None:
    path = tmp_path / "m.pt"
    if legacy == "torch":
        torch.save({"x": evil}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=4))
    text = _refused(path, proof)
    assert any(f".{name} (" in text for name in NAMES)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("what", ["module", "state", "arrays"])
def test_what_pickle_itself_wrote(what: str, trust: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    contents = {"module": net, "state": net.state_dict(), "arrays": arrays}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(contents[what]))
    if what == "module":
        ours = load(tmp_path / "m.pkl", trust_pickle=trust).module
        assert all(map(torch.equal, ours.state_dict().values(), net.state_dict().values()))
    else:
        with pytest.raises(LoadError, match="a state dict of 7 tensors"):
            load(tmp_path / "m.pkl", trust_pickle=trust)


def test_the_bytes_of_a_storage_are_nothing_else(evil: object, proof: Path, tmp_path: Path) -> None:
    class Embeds:
        def __init__(self, content: object) -> None:
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=False)
            self.data = stream.getvalue()

        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (self.data,)

    for content in (evil, nn.Linear(2, 2), {"w": torch.ones(2)}, Embeds(evil)):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"w": Embeds(content)}))
        with pytest.raises(LoadError, match="the bytes of a storage hold something else"):
            load(tmp_path / "m.pkl")
    assert not proof.exists()


def test_trust_pickle_lifts_it(evil: object, proof: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2, 3), "x": evil}, tmp_path / "m.pt")
    with pytest.raises(LoadError, match="weights without a network"):
        load(tmp_path / "m.pt", trust_pickle=True)
    assert proof.exists()


def test_trust_pickle_takes_what_only_pickle_reads(tmp_path: Path) -> None:
    """Instructions that torch.save does not write are no reason to refuse a file that is trusted."""
    _checkpoint(
        tmp_path / "m.pt",
        b"(dX\x01\x00\x00\x00w(cfractions\nFraction\nK\x01K\x02oscollections"[:-11],
    )
    with pytest.raises(LoadError, match="instructions"):
        load(tmp_path / "m.pt")
    with pytest.raises(LoadError, match="holds no weights"):
        load(tmp_path / "m.pt", trust_pickle=True)


def _checkpoint(path: Path, body: bytes) -> None:
    """A torch.save file whose pickle is replaced by hand-written instructions."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    reader = torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue()))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        data = b"\x80\x02" + body + b"." if name == "data.pkl" else reader.get_record(name)
        if not name.startswith(".data"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def _call(module: str, name: str, argument: bytes = b"X\x04\x00\x00\x00true") -> bytes:
    return f"c{module}\n{name}\n".encode() + argument + b"\x85R"


ATTACKS = {
    "attribute traversal": _call("timm.models", "os.system"),
    "traversal through torch": _call("torch.nn.modules.module", "torch.os.system"),
    "imported name": _call("torch.nn.functional", "importlib"),
    "imported function": _call("torchvision.datasets.utils", "urlretrieve"),
    "prefix of a package": _call("timm_evil", "run"),
    "prefix of a module": _call("torch.nn_evil", "run"),
    "library function": _call("timm.models._hub", "load_state_dict_from_hf"),
    "torch.load": _call("torch", "load"),
    "torch.hub": _call("torch.hub", "load"),
    "graph module": _call("torchvision.models.feature_extraction", "DualGraphModule"),
    "submodule run as a script": _call("transformers.__main__", "main"),
    "space in a name": _call("timm.models os", "system"),
    "posix": _call("posix", "system"),
    "computed callee": _call("torch.nn.functional", "relu") + b"X\x01\x00\x00\x00x\x85R",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_the_allow_list(
    attack: str, tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("timm_evil", "torch.nn_evil"):
        folder = tmp_path.joinpath("site", *package.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"open({str(proof)!r}, 'w')\nrun = print\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    _checkpoint(tmp_path / "m.pt", ATTACKS[attack])
    _refused(tmp_path / "m.pt", proof)
    assert not ran
    assert "timm_evil" not in sys.modules
    assert "torch.nn_evil" not in sys.modules


def test_constructors_and_functions_are_never_called_by_a_file(tmp_path: Path, proof: Path) -> None:
    # Admitted as values, refused as callees: also through the rebuild function that calls.
    for body in (
        _call("torch.nn.modules.linear", "Identity"),
        _call("torch.nn.functional", "relu"),
        _call("transformers.models.bert.configuration_bert", "BertConfig"),
    ):
        _checkpoint(tmp_path / "m.pt", body)
        _refused(tmp_path / "m.pt", proof, "the file would call it while loading")
    hidden = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.nn.modules.linear\nIdentity\n"
        b"ctorch\nTensor\n))tR"
    )
    _checkpoint(tmp_path / "m.pt", hidden)
    _refused(tmp_path / "m.pt", proof, "it would rebuild what is no tensor")


def test_getattr_only_gives_a_modules_own_forward(tmp_path: Path, proof: Path) -> None:
    for name in ("__init__", "save_pretrained", "load_state_dict", "__class__"):
        body = (
            b"cbuiltins\ngetattr\nctorch.nn.modules.linear\nIdentity\n)\x81"
            + b"X" + len(name).to_bytes(4, "little") + name.encode() + b"\x86R"
        )  # fmt: skip
        _checkpoint(tmp_path / "m.pt", body)
        _refused(tmp_path / "m.pt", proof, name)


def test_partial_of_a_torch_function_is_a_value(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3))
    model.activation = partial(nn.functional.leaky_relu, negative_slope=0.5)
    torch.save(model, tmp_path / "m.pt")
    loaded: Any = load(tmp_path / "m.pt").module
    assert loaded.activation.keywords == {"negative_slope": 0.5}


def test_every_refused_name_is_listed(project: Path, tmp_path: Path, proof: Path) -> None:
    import argparse
    import fractions

    sys.path.insert(0, str(project))
    model = importlib.import_module("mynets_for_load").Net()
    model.options = argparse.Namespace(lr=0.1)
    model.half = fractions.Fraction(1, 2)
    torch.save(model, tmp_path / "m.pt")
    text = _refused(
        tmp_path / "m.pt", proof, "mynets_for_load.Net", "fractions.Fraction", "2 refused"
    )
    assert "argparse" not in text
    _refused(tmp_path / "m.pt", proof, trust_modules=["mynets_for"])


def test_trust_module_admits_a_users_class(project: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c",
         "import mynets_for_load as m, torch; torch.save(m.Net(7).eval(), 'own.pt')"],
        check=True, cwd=project,
    )  # fmt: skip
    with pytest.raises(LoadError, match="--trust-module mynets_for_load"):
        load("own.pt")
    assert "mynets_for_load" not in sys.modules
    loaded = load("own.pt", trust_modules=["mynets_for_load"])
    module: Any = loaded.module
    assert module.fc.out_features == 7
    assert loaded.notes == []


def test_main_classes_get_their_own_hint(project: Path) -> None:
    code = "import torch\nclass Own(torch.nn.Module):\n    pass\ntorch.save(Own(), 'main.pt')\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)
    with pytest.raises(LoadError, match="defined in a script's `__main__`"):
        load("main.pt")


@pytest.mark.parametrize(
    "name", ["os", "subprocess", "builtins", "torch.hub", "timm", "not a name", "a..b", ""]
)
def test_trust_module_names_are_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load(tmp_path / "m.pt", trust_modules=[name])
