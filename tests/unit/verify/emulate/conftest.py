"""The real runtimes, installed once into the user's own cache, which later runs of the tests find again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeq.report.progress import Quiet
from edgeq.verify.emulate.cpus import QEMU
from edgeq.verify.emulate.install import DEFAULT_WHEELS, Installed, ensure_installed
from edgeq.verify.emulate.runner import Arrays

SELFTEST = Path(__file__).parents[4] / "edgeq" / "verify" / "emulate" / "selftest"


@pytest.fixture(scope="session")
def qemu() -> None:
    """Skip where QEMU or the cross compiler is missing; scripts/test installs both where it may."""
    for tool in (QEMU, "aarch64-linux-gnu-g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")


@pytest.fixture(scope="session")
def executorch(qemu: None) -> Installed:
    return ensure_installed(DEFAULT_WHEELS[0], Quiet())


@pytest.fixture(scope="session")
def torch_lite(qemu: None) -> Installed:
    return ensure_installed(DEFAULT_WHEELS[1], Quiet())


@pytest.fixture(scope="session")
def onnx_runtime(qemu: None) -> Installed:
    return ensure_installed(DEFAULT_WHEELS[2], Quiet())


@pytest.fixture(scope="session")
def litert_runtime(qemu: None) -> Installed:
    return ensure_installed(DEFAULT_WHEELS[3], Quiet())


@pytest.fixture(scope="session")
def digits() -> tuple[Arrays, ...]:
    with np.load(SELFTEST / "digits.npz") as arrays:
        return tuple((row[None],) for row in arrays["inputs"])
