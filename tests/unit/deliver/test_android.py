from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeq.core.errors import UsageError
from edgeq.deliver.android import growth_by_abi


def aar(path: Path, abis: tuple[str, ...] = ("arm64-v8a", "x86_64"), library: str = "libexecutorch.so") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("classes.jar", bytes(500))
        for abi in abis:
            archive.writestr(f"jni/{abi}/{library}", bytes(100_000))
            archive.writestr(f"jni/{abi}/libc++_shared.so", bytes(20_000))
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


def test_bundle_and_library_of_the_bundles_abi(tmp_path: Path) -> None:
    (growth,) = growth_by_abi("arm64", "executorch", 1000, aar(tmp_path / "et-1.5.1.aar"))
    assert (growth.abi, growth.library, growth.library_bytes) == ("arm64-v8a", "et-1.5.1.aar", 120_000)
    assert growth.total_bytes == 121_000
    assert growth.compressed_bytes is not None
    assert 0 < growth.compressed_bytes < 1000


def test_the_newest_of_a_builds_cache_is_found(home: Path) -> None:
    gradle = home / ".gradle/caches/modules-2/files-2.1/org.pytorch/executorch-android"
    aar(gradle / "1.9.0/abc/executorch-android-1.9.0.aar")
    aar(gradle / "1.10.0/abc/executorch-android-1.10.0.aar")
    aar(
        home / ".m2/repository/org/pytorch/pytorch_android_lite/2.1.0/pytorch_android_lite-2.1.0.aar",
        library="libpytorch_jni_lite.so",
    )
    assert growth_by_abi("arm64", "executorch", 1, None)[0].library == "executorch-android-1.10.0.aar"
    assert growth_by_abi("x86_64", "torchscript", 1, None)[0].library == "pytorch_android_lite-2.1.0.aar"


def test_without_a_library_nothing_is_made_up() -> None:
    (growth,) = growth_by_abi("arm64", "executorch", 1000, None)
    assert (growth.library, growth.library_bytes, growth.total_bytes) == (None, None, None)


@pytest.mark.parametrize("data", [None, b"", b"no ZIP"])
def test_what_is_no_aar_is_refused(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "x.aar"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match="is not an AAR"):
        growth_by_abi("arm64", "executorch", 1, path)


def test_an_aar_for_other_abis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no native library for arm64-v8a"):
        growth_by_abi("arm64", "executorch", 1, aar(tmp_path / "x.aar", abis=("x86_64",)))


def test_an_aar_of_another_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"is not the library of onnx, which the bundle needs: it has libc\+\+_shared\.so"
    ):
        growth_by_abi("arm64", "onnx", 1, aar(tmp_path / "executorch-android-1.5.1.aar"))
