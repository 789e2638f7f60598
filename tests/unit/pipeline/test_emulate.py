"""Which targets are emulated, on which machines; the whole of it is tested in tests/integration/test_emulator.py."""

from __future__ import annotations

import pytest

from edgeq.check.device import device_gate
from edgeq.errors import UsageError
from edgeq.job import DeviceOptions
from edgeq.pipeline.emulate import no_sdk
from edgeq.target import TargetProfile, load_target
from edgeq.verify.emulate.wanted import check_options, not_emulated, wants_emulation

PHONE, APPLE, HOST = (load_target(name) for name in ("android-arm64-xnnpack", "ios-arm64-xnnpack", "linux-x86_64-x86"))


@pytest.mark.parametrize(
    ("target", "options", "wanted", "told"),
    [
        (PHONE, DeviceOptions(), True, False),
        (PHONE, DeviceOptions(on="host"), False, True),
        (APPLE, DeviceOptions(), False, False),
        (APPLE, DeviceOptions(on="host"), False, False),
        (APPLE, DeviceOptions(cpu=("cortex-a76",)), True, False),
        (HOST, DeviceOptions(cpu=("cortex-a76",)), False, False),
    ],
)
def test_targets_with_a_device_are_emulated(target: TargetProfile, options: DeviceOptions, wanted: bool, told: bool):
    assert wants_emulation(target, options) is wanted
    assert bool(not_emulated(target, options)) is told


def test_cpus_that_concern_no_target_are_refused():
    check_options(DeviceOptions(cpu=("cortex-a76",)), (PHONE, HOST))
    with pytest.raises(UsageError, match="ARM64"):
        check_options(DeviceOptions(cpu=("cortex-a76",)), (HOST,))


def test_a_runtime_without_a_wheel_is_unverified():
    gate = device_gate("fp32", no_sdk("executorch", ("1.4",)))
    assert gate.outcome == "unverified"
    assert "executorch 1.4" in gate.detail
