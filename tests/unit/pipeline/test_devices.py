"""Which targets are emulated, on which machines; the whole of it is tested in tests/integration/test_emulator.py."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest

from edgeq.check.device import device_gate
from edgeq.core.config import DeviceConfig
from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.core.manifest import AgreementFacts, DeviceRunFacts, EmulationFacts, parse_manifest
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import TargetProfile, load_target
from edgeq.pipeline import devices
from edgeq.pipeline.devices import Emulator, machines, no_sdk
from edgeq.report.progress import Quiet
from edgeq.verify.emulate.install import Installed
from edgeq.verify.emulate.selftest import Machine, emulator_of
from edgeq.verify.emulate.support import check_options, check_tools, not_emulated, wants_emulation

PHONE, APPLE, HOST = (load_target(name) for name in ("android-arm64-xnnpack", "ios-arm64-xnnpack", "linux-x86_64-x86"))


@pytest.mark.parametrize(
    ("target", "options", "wanted", "told"),
    [
        (PHONE, DeviceConfig(), True, False),
        (PHONE, DeviceConfig(on="host"), False, True),
        (APPLE, DeviceConfig(), False, False),
        (APPLE, DeviceConfig(on="host"), False, False),
        (APPLE, DeviceConfig(cpu=("cortex-a76",)), True, False),
        (HOST, DeviceConfig(cpu=("cortex-a76",)), False, False),
    ],
)
def test_targets_with_a_device_are_emulated(target: TargetProfile, options: DeviceConfig, wanted: bool, told: bool):
    assert wants_emulation(target, options) is wanted
    assert bool(not_emulated(target, options)) is told


def test_cpus_that_concern_no_target_are_refused():
    check_options(DeviceConfig(cpu=("cortex-a76",)), (PHONE, HOST))
    with pytest.raises(UsageError, match="ARM64"):
        check_options(DeviceConfig(cpu=("cortex-a76",)), (HOST,))


def test_a_runtime_without_a_wheel_is_unverified():
    gate = device_gate("fp32", no_sdk("executorch", ("1.4",)))
    assert gate.outcome == "unverified"
    assert "executorch 1.4" in gate.detail


def test_an_arm64_host_asks_for_no_qemu_and_takes_its_own_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem) as caught:
        check_tools(DeviceConfig(), (PHONE,))
    assert caught.value.what.startswith("g++ is missing")
    assert caught.value.fix == "apt-get install g++, or verify on this host only: --on host"
    monkeypatch.setattr(devices, "ensure_installed", lambda wheel, _: Installed(wheel=wheel, folder=tmp_path))
    tested: list[Machine] = []
    monkeypatch.setattr(devices, "ensure_tested", lambda found, _: tested.extend(found))
    (machine,) = machines("executorch", ("1.5",), ("cortex-a53", "cortex-a76"), Quiet())
    assert (machine.cpu, machine.cpu_name, tested) == (None, "native", [machine])
    assert emulator_of([machine]) == "native"


def test_a_bundle_of_an_arm64_host_is_emulated_on_the_models_of_its_target():
    from edgeq.pipeline.devices import _cpus

    path = Path(__file__).parents[2] / "golden" / "0.1.0" / "digits" / PHONE.name / "manifest.json"
    manifest = parse_manifest(path.read_bytes())
    pair = AgreementFacts(
        left="host", right="native", samples=1, max_abs=0.0, sqnr_db="inf", differing=0.0, top1_flips=0
    )
    run = DeviceRunFacts(
        cpu="native", runtime="executorch 1.5.1", features=(), samples=1, host=pair, fp32=None, score=None,
        host_score=None, fp32_score=None, scored=0, rescored=None,
    )  # fmt: skip
    native = manifest.model_copy(update={"emulation": EmulationFacts(runs=(run,), between=())})
    assert _cpus(native) == PHONE.device.cpu


def test_a_product_never_gets_what_was_made_of_one_that_is_gone(monkeypatch: pytest.MonkeyPatch, item: BundleInput):
    emulator = Emulator(DeviceConfig(), Quiet())
    monkeypatch.setattr(emulator, "_machines_of", lambda _: ("a machine",))
    monkeypatch.setattr(emulator, "_emulated", lambda artifact, *_: dataclasses.replace(artifact))
    for scheme in ("static-int8", "dynamic-int8", "fp32"):
        # each is dropped before the next is made, and so may lie where that lay
        artifact = dataclasses.replace(item.artifact, asked_fp32=(scheme,))
        assert emulator.run(artifact, item.inputs, PHONE, scheme, "").asked_fp32 == (scheme,)
        del artifact
