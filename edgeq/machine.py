"""What this machine is, found without torch."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_DEVICES = ("nvidia0", "nvhost-gpu")  # a card, and a Jetson's own GPU
_CPUINFO = Path("/proc/cpuinfo")
# what a kernel is chosen by, on x86 and on ARM; a virtual machine's model name may be no more than "AMD EPYC"
_TELLING = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")
_TELLING_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
_SAY_S = 10.0


def host_arch() -> str:
    """Return this machine's architecture in the words of target profiles."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def processor_name() -> str:
    """Return what this machine's processor calls itself."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SAY_S).stdout
    else:
        said = next((value for key, value in _cpuinfo() if key == "model name"), "")
    return said.strip() or f"a host with {platform.machine()}"


@functools.cache
def processor_facts() -> tuple[str, ...]:
    """Return what tells this machine's processors from others': models, extensions, and how many cores there are.

    Float kernels and their rounding are chosen by these, and measured times are theirs.
    """
    told = {f"{key}: {value}" for key, value in _cpuinfo() if key in (*_TELLING, *_TELLING_ARM)}
    return (processor_name(), f"{os.cpu_count()} cores", *sorted(told))


def _cpuinfo() -> tuple[tuple[str, str], ...]:
    """Return the lines of Linux's /proc/cpuinfo, of all cores; none elsewhere."""
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        return tuple((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    return ()


@functools.cache
def driver_state() -> str:
    """Return the GPUs and their driver in words, with what CUDA_VISIBLE_DEVICES leaves of them; "" for none."""
    told = _told()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{told}; CUDA_VISIBLE_DEVICES={visible}" if told and visible is not None else told


def _told() -> str:
    found = shutil.which("nvidia-smi")
    if found is not None:
        done = subprocess.run([found, *_QUERY], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return "; ".join(line.strip() for line in done.stdout.splitlines())
    return next((f"/dev/{name}" for name in _DEVICES if Path("/dev", name).exists()), "")
