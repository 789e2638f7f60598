"""The devices' runtimes: which official wheels hold them, pinned by hash, and what was made of them in the cache."""

from __future__ import annotations

import functools
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq._io import canonical_json, sha256_bytes, sha256_file
from edgeq.places import cache_folder

RECORD_NAME = "installed.json"
Arch = Literal["arm64", "x86_64"]
_MACHINES: dict[Arch, tuple[str, ...]] = {"arm64": ("aarch64", "arm64"), "x86_64": ("x86_64", "amd64")}
SOURCES = Path(__file__).with_name("src")


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a runner is compiled against a wheel, and which part of the wheel that takes.

    Attributes:
        source: the runner in `src/`.
        headers: folders of the wheel that only the compiler needs.
        libraries: what is kept of the wheel, as patterns of paths.
        includes, library_folder: where the compiler looks, inside the wheel.
        flags: of the compiler.
        links: of the linker.
    """

    source: str
    headers: tuple[str, ...]
    libraries: tuple[str, ...]
    includes: tuple[str, ...]
    library_folder: str
    flags: tuple[str, ...]
    links: tuple[str, ...]


_EXECUTORCH = Build(
    source="pte_runner.cpp",
    headers=("executorch/include/",),
    libraries=(
        "executorch/lib/libexecutorch.so",
        "executorch/lib/libexecutorch_backend_xnnpack.so",
        "executorch/lib/libexecutorch_etdump.so",
        "executorch/lib/libexecutorch_kernels_optimized.so",
        "executorch/lib/libexecutorch_kernels_quantized.so",
        "executorch/lib/libexecutorch_threadpool.so",
    ),
    includes=("executorch/include", "executorch/include/executorch/runtime/core/portable_type/c10"),
    library_folder="executorch/lib",
    flags=("-O2", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL"),
    links=(
        "-lexecutorch",
        "-lexecutorch_etdump",
        "-Wl,--no-as-needed",  # operators and delegates register themselves when their library is loaded
        "-lexecutorch_kernels_optimized",
        "-lexecutorch_kernels_quantized",
        "-lexecutorch_backend_xnnpack",
        "-lexecutorch_threadpool",
    ),
)
_TORCH = Build(
    source="ptl_runner.cpp",
    headers=("torch/include/",),
    libraries=("torch/lib/libc10.so", "torch/lib/libtorch_cpu.so", "torch.libs/"),
    includes=("torch/include", "torch/include/torch/csrc/api/include"),
    library_folder="torch/lib",
    flags=("-O1", "-w", "-D_GLIBCXX_USE_CXX11_ABI=0"),
    links=("-ltorch_cpu", "-lc10", "-Wl,--allow-shlib-undefined"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """An official wheel for Linux that holds a runtime and its headers.

    Attributes:
        runtime: whose artifacts it runs, in the words of target profiles.
        arch: whose processors it is for, in the same words.
        platform: the wheel's platform tag.
        file: its file name on PyPI.
    """

    runtime: Literal["executorch", "torchscript"]
    arch: Arch
    package: str
    version: str
    platform: str
    file: str
    sha256: str
    size_bytes: int
    build: Build

    @property
    def title(self) -> str:
        """Package and version, for people."""
        return f"{self.package} {self.version}"


# of each architecture oldest first; an executorch wheel is an SDK from 1.5 on, and the last Android lite runtime is
# torch 2.1.0's, whose wheel for x86_64 is CUDA's
WHEELS = (
    Wheel(
        runtime="executorch",
        arch="arm64",
        package="executorch",
        version="1.5.0",
        platform="manylinux_2_28_aarch64",
        file="executorch-1.5.0-cp311-cp311-manylinux_2_28_aarch64.whl",
        sha256="b378f610c76ba5869fa44e4c4d1b4b17b186f2715ab3a01787dc1a1056e84db0",
        size_bytes=17_807_368,
        build=_EXECUTORCH,
    ),
    Wheel(
        runtime="executorch",
        arch="arm64",
        package="executorch",
        version="1.5.1",
        platform="manylinux_2_28_aarch64",
        file="executorch-1.5.1-cp311-cp311-manylinux_2_28_aarch64.whl",
        sha256="8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a",
        size_bytes=17_810_491,
        build=_EXECUTORCH,
    ),
    Wheel(
        runtime="torchscript",
        arch="arm64",
        package="torch",
        version="2.1.0",
        platform="manylinux2014_aarch64",
        file="torch-2.1.0-cp311-cp311-manylinux2014_aarch64.whl",
        sha256="8132efb782cd181cc2dcca5e58effbe4217cdb2581206ac71466d535bf778867",
        size_bytes=84_158_846,
        build=_TORCH,
    ),
    Wheel(
        runtime="executorch",
        arch="x86_64",
        package="executorch",
        version="1.5.1",
        platform="manylinux_2_28_x86_64",
        file="executorch-1.5.1-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256="274c28c2fe2b76acb03f9fa381537425c40e0098dcf886baf6d97a1a55ffe300",
        size_bytes=18_887_977,
        build=_EXECUTORCH,
    ),
)
DEFAULT_WHEELS = WHEELS[1:3]  # those of the shipped target profiles that are emulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A runtime in the cache, with its runner compiled."""

    wheel: Wheel
    folder: Path

    @property
    def runner(self) -> Path:
        """The executable."""
        return self.folder / "runner"


def find_wheels(
    runtime: str, versions: Sequence[str], arch: Arch = "arm64"
) -> tuple[tuple[Wheel, ...], tuple[str, ...]]:
    """Return the wheels for a target's `[app] runtimes`, and the versions that none is known for.

    A version without its last part, such as 1.5, stands for the newest 1.5.x.
    """
    found: dict[str, Wheel] = {}
    missing = []
    for version in versions:
        match = [w for w in _wheels_of(runtime, arch) if f"{w.version}.".startswith(f"{version}.")]
        if match:
            found[match[-1].version] = match[-1]
        else:
            missing.append(version)
    return tuple(found.values()), tuple(missing)


def _wheels_of(runtime: str, arch: Arch) -> tuple[Wheel, ...]:
    return tuple(wheel for wheel in WHEELS if (wheel.runtime, wheel.arch) == (runtime, arch))


def is_native(arch: Arch = "arm64") -> bool:
    """Whether this host runs programs of that architecture itself."""
    return platform.system() == "Linux" and platform.machine().lower() in _MACHINES[arch]


def emulator_folder() -> Path:
    """Return where wheels and runtimes are kept."""
    return cache_folder() / "emulator"


def wheel_path(wheel: Wheel) -> Path:
    """Return where the wheel is kept, so that runners can be compiled again without the network."""
    return emulator_folder() / "wheels" / wheel.file


def runtime_folder(wheel: Wheel) -> Path:
    """Return where the runtime belongs; the name changes with the wheel, the sources and the flags."""
    return emulator_folder() / "runtimes" / f"{wheel.package}-{wheel.version}-{runtime_digest(wheel)[:16]}"


@functools.cache
def runtime_digest(wheel: Wheel) -> str:
    """Hash what a compiled runtime depends on, compiler apart."""
    build = wheel.build
    sources = {name: sha256_file(SOURCES / name) for name in ("runner.h", build.source)}
    options = [build.flags, build.links, build.libraries, is_native(wheel.arch)]
    return sha256_bytes(canonical_json({"wheel": wheel.sha256, "sources": sources, "options": options}))


def find_installed(wheel: Wheel) -> Installed | None:
    """Return the runtime if it lies in the cache as it was installed; one that does not is removed, not used."""
    folder = runtime_folder(wheel)
    if not folder.exists():
        return None
    if _is_sound(folder):
        return Installed(wheel=wheel, folder=folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


@functools.cache  # hashing torch takes half a second
def _is_sound(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
        files = record["files"]
        whole = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return whole == {*files, RECORD_NAME} and files == hashes(folder, files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each file below `folder`."""
    return {name: sha256_file(folder / name) for name in names}
