"""What this machine is, found without torch."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_DEVICES = ("nvidia0", "nvhost-gpu")  # a card, and a Jetson's own GPU


def host_arch() -> str:
    """Return this machine's architecture in the words of target profiles."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


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
