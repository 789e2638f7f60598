"""Installing a device's runtime: fetch its wheel, unpack what is needed, compile the runner, put it into the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from edgeq._io import canonical_json, disk_errors, lock_dir, sha256_file, staged_dir, write_atomic
from edgeq.errors import EnvironmentProblem, IntegrityError
from edgeq.job import Progress, Task
from edgeq.verify.emulate.cpus import SYSROOT
from edgeq.verify.emulate.runtimes import (
    RECORD_NAME,
    SOURCES,
    Arch,
    Build,
    Installed,
    Wheel,
    emulator_folder,
    find_installed,
    hashes,
    is_native,
    runtime_folder,
    wheel_path,
)

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
    """Return the runtime from the cache; fetch and compile it first where it is not there, or not as it was.

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
        _drop_others(folder, wheel)
    return Installed(wheel=wheel, folder=folder)


def find_compiler(arch: Arch = "arm64") -> str:
    """Return the compiler for an architecture: the cross compiler, or on a host of that kind its own.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    name, package = (_NATIVE_COMPILER, _NATIVE_COMPILER) if is_native(arch) else _CROSS[arch]
    found = shutil.which(name)
    if found is None or not (is_native(arch) or arch != "arm64" or SYSROOT.is_dir()):
        what = f"{name} is missing: it compiles edgeq's runners for the {_WORDS[arch]} runtimes"
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
        raise EnvironmentProblem(f"{compiler} has no {name}", "install the compiler again, with its libraries")
    return Path(said)


def _drop_others(folder: Path, wheel: Wheel) -> None:
    """Remove what another edgeq made of the same wheel long ago; a newer one may be in use beside this one."""
    for other in folder.parent.glob(f"{wheel.package}-{wheel.version}-*"):
        if other != folder and time.time() - other.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)


def _fetched(wheel: Wheel, progress: Progress) -> Path:
    """Return the wheel in the cache, with the pinned hash."""
    path = wheel_path(wheel)
    if path.is_file() and sha256_file(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        total = wheel.size_bytes // _MB
        with progress.task(f"download {wheel.title} for {_WORDS[wheel.arch]}, {total} MB", total) as task:
            _download(wheel, Path(folder), task)
        came = Path(folder) / wheel.file
        if not came.is_file():
            raise EnvironmentProblem(f"pip did not bring {wheel.file}", "see that pip's index has it, and try again")
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
            _follow(process, task)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _why_not(wheel, (folder / "stderr").read_text(errors="replace"))


def _follow(process: subprocess.Popen[str], task: Task) -> None:
    """Tell the progress that `--progress-bar raw` prints: `Progress CURRENT of TOTAL`, in bytes."""
    told = 0
    for line in process.stdout or ():
        words = line.split()
        if words[:1] == ["Progress"] and len(words) > 1 and words[1].isdigit():
            now = int(words[1]) // _MB
            task.advance(max(0, now - told))
            told = max(told, now)
    process.wait()


def _why_not(wheel: Wheel, said: str) -> EnvironmentProblem | IntegrityError:
    if "DO NOT MATCH THE HASHES" in said:
        return _wrong_hash(wheel)
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = lines[-1][:300] if lines else (said.strip().splitlines() or ["it said nothing"])[-1][:300]
    what = f"the download of {wheel.file} failed: {last}"
    return EnvironmentProblem(what, "check the network and pip's index, then run `edgeq emulator install`")


def _wrong_hash(wheel: Wheel) -> IntegrityError:
    what = f"{wheel.file} is not the published wheel: its hash is not {wheel.sha256[:12]}…"
    return IntegrityError(what, "see which index pip is set to (`pip config list`), and fetch from PyPI")


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
