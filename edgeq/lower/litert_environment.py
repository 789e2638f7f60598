"""The converter to LiteRT, in an environment of its own in the user's cache, made when it is first needed.

litert-torch 0.10 wants torch before 2.15 and, through xdsl, typing-extensions before 4.13, so that it cannot be
installed beside edgeq. `litert-requirements.txt` pins all that it needs by hash (scripts/lock).
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from edgeq.core.config import Progress
from edgeq.core.errors import EnvironmentProblem, UnsupportedError
from edgeq.core.files import cache_folder, canonical_json, disk_errors, lock_dir, sha256_bytes, sha256_file, staged_dir

REQUIREMENTS = Path(__file__).with_name("litert-requirements.txt")

SCRIPT = Path(__file__).with_name("litert_convert.py")

# the wheels that pip downloads on Linux x86_64, and what they take once installed: most of it is torch's CUDA libraries
DOWNLOAD_GB, INSTALLED_GB = 3, 6.3

_LOCK_S = 3600.0

_INSTALL_S = 3600.0

_CONVERT_S = 3600.0

_UNUSED_S = 7 * 24 * 3600.0

_FAILED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Failure)): (.*)", re.MULTILINE)


def converter_folder() -> Path:
    """Return where the environment belongs; its name changes with what it holds and with this Python's version."""
    return cache_folder() / "converters" / f"litert-{_digest()[:16]}"


@functools.cache
def _digest() -> str:
    facts = [sha256_file(REQUIREMENTS), *sys.version_info[:2], sys.base_prefix, platform.machine(), sys.platform]
    return sha256_bytes(canonical_json(facts))


def converter_tools(runtime: str) -> dict[str, str]:
    """Return names and versions of what converts and runs LiteRT's artifacts; empty for other runtimes."""
    if runtime != "litert":
        return {}
    pinned = re.findall(r"^(litert-torch)==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    return dict(pinned) | {"ai-edge-litert": importlib.metadata.version("ai-edge-litert")}


def is_ready() -> bool:
    """Whether the environment is there: it takes its place only once it is whole."""
    return _python(converter_folder()).exists()


def ensure_converter(progress: Progress) -> Path:
    """Return the Python of the environment; make the environment first where it is missing.

    Raises:
        EnvironmentProblem: pip cannot install it: no network, no space, or no wheels for this Python.
    """
    folder = converter_folder()
    if is_ready():
        return _python(folder)
    with disk_errors(folder.parent), lock_dir(folder.parent, wait_s=_LOCK_S):
        if is_ready():  # another edgeq may have been faster
            return _python(folder)
        what = f"install LiteRT's converter, once: {DOWNLOAD_GB} GB to download"
        with staged_dir(folder) as staging, progress.task(what):
            venv.EnvBuilder(symlinks=True, with_pip=False).create(staging)
            _install(_python(staging))
        for other in folder.parent.glob("litert-*"):
            if other != folder and time.time() - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
    return _python(folder)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _install(python: Path) -> None:
    """Let pip install the pinned packages, by its ordinary indexes and settings."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--no-compile", "--only-binary=:all:", "--no-deps", "--require-hashes"]
    command += ["-r", str(REQUIREMENTS)]
    done = _run(command, _INSTALL_S)
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = (lines or done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:300]
        what = f"LiteRT's converter could not be installed: {why}"
        fix = f"check the network, pip's index and that {INSTALLED_GB} GB are free, then run again"
        raise EnvironmentProblem(what, fix)


def _run(command: Sequence[str], most_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command; one that takes too long ends with status 124 and says so, as `timeout` has it."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=most_s
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"TimeoutError: it did not end within {most_s:g} s")


def convert(python: Path, source: Path, target: Path, *, static: bool) -> None:
    """Write the `.tflite` file of an exported program.

    Args:
        python: of the environment, as `ensure_converter` returns it.
        source: the program, as torch.export.save wrote it.
        target: the file to write.
        static: whether integer operators are made of the program's rounding.

    Raises:
        UnsupportedError: the converter cannot read or express the program, or takes longer than an hour.
    """
    command = [str(python), "-I", str(SCRIPT), str(source), str(target), *(["static"] if static else [])]
    done = _run(command, _CONVERT_S)
    if done.returncode or not target.is_file():
        raise UnsupportedError(f"LiteRT's converter cannot express this model: {_why(done)}", _OTHERS)


_OTHERS = "replace the operator named in this error, or use another target, such as android-arm64-xnnpack"


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """Return what the converter's last error says: the first line of the message, without places in this machine."""
    found = _FAILED.findall(done.stderr)
    if not found:
        return f"it ended with status {done.returncode}"
    kind, message = found[-1]
    plain = re.sub(r"(?:/[^\s:]+)+\.py:\d+:\d+: ", "", message).strip()
    return f"{plain or kind}"[:300]
