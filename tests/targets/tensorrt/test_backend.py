"""Which builder is taken, what it refuses, and where its timings are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from normfold.errors import EnvironmentMissing, UsageError
from normfold.job import EngineOptions
from normfold.targets.tensorrt import Backend, Gpu, candidates, find
from normfold.targets.tensorrt.backend import TensorRT
from tests.targets.tensorrt.conftest import NO_GPU, Machine
from tests.targets.tensorrt.fakes import ADA, Config, tensorrt


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither is installed, until `setitem` says so."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    return monkeypatch


def test_tensorrt_is_taken_where_there_is_a_gpu(
    install: pytest.MonkeyPatch, machine: Machine, rtx: Backend
) -> None:
    install.setitem(sys.modules, "tensorrt", tensorrt("11.1.0.1"))
    install.setitem(sys.modules, "tensorrt_rtx", rtx.trt)
    assert find().name == "tensorrt-rtx"
    machine(ADA)
    assert find().name == "tensorrt"
    assert find("tensorrt-rtx").name == "tensorrt-rtx"
    install.setitem(sys.modules, "tensorrt", None)
    assert find().name == "tensorrt-rtx"


def test_one_that_is_too_old_is_passed_over(
    install: pytest.MonkeyPatch, machine: Machine, rtx: Backend
) -> None:
    machine(ADA)
    install.setitem(sys.modules, "tensorrt", tensorrt("10.11.0.33"))
    with pytest.raises(EnvironmentMissing, match=r"(?s)10.11.0.33 is too old.*10.12"):
        find("tensorrt")
    with pytest.raises(EnvironmentMissing, match=r"10.11.0.33 is too old; `tensorrt_rtx` is not"):
        find()
    install.setitem(sys.modules, "tensorrt_rtx", rtx.trt)
    assert find().name == "tensorrt-rtx"
    install.setitem(sys.modules, "tensorrt", tensorrt("10.12.0.36"))
    assert find().name == "tensorrt"


def test_nothing_is_installed(install: pytest.MonkeyPatch, machine: Machine) -> None:
    with pytest.raises(EnvironmentMissing, match=r"(?s)no builder.*pip install tensorrt-rtx"):
        find()
    machine(ADA)
    with pytest.raises(EnvironmentMissing, match=r"(?s)no builder.*`pip install tensorrt` on"):
        find()
    assert [item.backend for item in candidates()] == [None, None]
    for name in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(EnvironmentMissing, match="is not installed"):
            find(name)
    with pytest.raises(UsageError, match=r"(?s)no builder `tensort`.*auto, tensorrt, "):
        find("tensort")


def test_tensorrt_without_a_gpu(install: pytest.MonkeyPatch, machine: Machine) -> None:
    install.setitem(sys.modules, "tensorrt", tensorrt("11.1.0.1"))
    with pytest.raises(EnvironmentMissing, match=rf"(?s)on a GPU.*{NO_GPU}.*tensorrt-rtx"):
        find("tensorrt")


def test_a_runtime_without_a_builder_is_none(install: pytest.MonkeyPatch, machine: Machine) -> None:
    lean = tensorrt("11.1.0.1")
    del lean.Builder
    install.setitem(sys.modules, "tensorrt", lean)
    machine(ADA)
    with pytest.raises(EnvironmentMissing, match="not installed"):
        find("tensorrt")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (EngineOptions(version_compatible=True), ["--version-compatible"]),
        (EngineOptions(hardware_compatible="ampere+"), ["--hardware-compatible", "--gpu-arch"]),
        (EngineOptions(timing_cache=Path("cache")), ["--timing-cache"]),
        (EngineOptions(gpu_arch=("sm89", "sm90")), ["`sm90`", "sm75, sm80, sm86, sm89, sm120"]),
    ],
)
def test_what_rtx_has_not(options: EngineOptions, parts: list[str], rtx: Backend) -> None:
    with pytest.raises(UsageError) as caught:
        rtx.check(options)
    for part in parts:
        assert part in str(caught.value)


def test_timings_go_into_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    backend, options = TensorRT(tensorrt("11.1.0.1")), EngineOptions(timing_cache=path)
    backend.check(options)
    path.touch()
    with pytest.raises(UsageError, match="names a folder"):
        backend.check(options)


def test_tensorrt_builds_for_its_own_gpu(machine: Machine) -> None:
    backend = TensorRT(tensorrt("11.1.0.1"))
    with pytest.raises(UsageError, match=r"(?s)--gpu-arch sm120.*--builder tensorrt-rtx"):
        backend.check(EngineOptions(gpu_arch=("sm120",)))
    machine(ADA)
    assert backend.targets(EngineOptions()) == ("sm89",)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"gpu_arch": ("ada",)}, "`ada` is not a compute capability"),
        ({"gpu_arch": ("8.9",)}, "sm89"),
        ({"workspace": 0}, "a number from 1 to 16,777,216"),
        ({"workspace": 1 << 60}, "a number from 1 to 16,777,216"),
        ({"hardware_compatible": "ampere"}, r"ampere\+"),
    ],
)
def test_what_no_builder_takes(options: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        EngineOptions(**options)  # type: ignore[arg-type]


def test_rtx_builds_for_all_from_ampere_on_or_what_was_asked(rtx: Backend) -> None:
    targets = rtx.targets(EngineOptions())
    assert {"sm80", "sm89", "sm120"} <= set(targets)
    assert "sm75" not in targets
    assert rtx.targets(EngineOptions(gpu_arch=("SM120", "sm89", "sm120"))) == ("sm120", "sm89")


def test_gpus_without_kernels_are_left_out_or_refused(rtx: Backend, machine: Machine) -> None:
    assert rtx.restricted(EngineOptions(), 89).gpu_arch == ("sm89", "sm120", "sm121")
    assert rtx.restricted(EngineOptions(gpu_arch=("sm120",)), 89).gpu_arch == ("sm120",)
    with pytest.raises(UsageError, match="before sm89"):
        rtx.restricted(EngineOptions(gpu_arch=("sm120", "sm86")), 89)
    backend = TensorRT(tensorrt("11.1.0.1"))
    machine(Gpu("an old GPU", "sm75"))
    with pytest.raises(UsageError, match="before sm89"):
        backend.restricted(EngineOptions(), 89)
    machine(ADA)
    assert backend.restricted(EngineOptions(), 89) == EngineOptions()


def test_networks_are_strongly_typed() -> None:
    assert TensorRT(tensorrt("10.12.0.36")).network_flags() == 1 << 1
    assert TensorRT(tensorrt("11.0.0.1")).network_flags() == 0


def test_native_rms_norms_by_version() -> None:
    assert TensorRT(tensorrt("10.14.1")).target.rms_opset == 20
    assert TensorRT(tensorrt("10.15.0")).target.rms_opset == 23
    assert TensorRT(tensorrt("11.0.0")).target.rms_opset == 23


def test_compatibility_is_configured(machine: Machine) -> None:
    backend = TensorRT(tensorrt("11.1.0.1"))
    config = Config()
    backend.configure(config, EngineOptions())
    assert (config.flags, config.hardware_compatibility_level) == ([], None)
    options = EngineOptions(version_compatible=True, hardware_compatible="ampere+")
    backend.configure(config, options)
    assert config.flags == ["version compatible"]
    assert config.hardware_compatibility_level == "ampere"
    backend.configure(config, EngineOptions(hardware_compatible="same-cc"))
    assert config.hardware_compatibility_level == "same"


def test_timings_are_kept_by_version_and_gpu(machine: Machine, tmp_path: Path) -> None:
    machine(ADA)
    options = EngineOptions(timing_cache=tmp_path / "new" / "cache")
    assert options.timing_cache is not None

    def build(version: str) -> bytes | None:
        config, backend = Config(), TensorRT(tensorrt(version))
        backend.configure(config, options)
        read = config.blob
        backend.built(config, options)
        return read

    assert build("11.1.0.1") == b""
    assert build("11.1.0.1") == b"+timings"
    assert build("11.2.0.1") == b""
    names = sorted(path.name for path in options.timing_cache.iterdir())
    assert names == ["tensorrt-11.1.0.1-sm89.cache", "tensorrt-11.2.0.1-sm89.cache"]
    assert (options.timing_cache / names[0]).read_bytes() == b"+timings+timings"
    (options.timing_cache / names[0]).write_bytes(b"damaged")
    assert build("11.1.0.1") == b""
    quiet = Config()
    TensorRT(tensorrt("11.1.0.1")).built(quiet, EngineOptions())
    assert len(list(options.timing_cache.iterdir())) == 2
