from __future__ import annotations

import dataclasses

import pytest

from edgeq.core.errors import EnvironmentProblem
from edgeq.report.progress import Quiet
from edgeq.verify.emulate import runner, selftest
from edgeq.verify.emulate.cpus import find_cpu
from edgeq.verify.emulate.selftest import Machine, ensure_tested


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No machine has passed yet."""
    monkeypatch.setattr(selftest, "emulator_folder", lambda: tmp_path)
    return tmp_path


def test_a_machine_that_passed_is_not_tested_again(executorch, fresh, monkeypatch):
    machine = Machine(runtime=executorch, cpu=find_cpu("cortex-a53"))
    ensure_tested((machine,), Quiet())
    monkeypatch.setattr(selftest, "run_all", lambda *_args, **_options: pytest.fail("tested again"))
    ensure_tested((machine,), Quiet())


def test_another_qemu_is_tested_anew(executorch, fresh, monkeypatch):
    machine = Machine(runtime=executorch, cpu=find_cpu("cortex-a53"))
    ensure_tested((machine,), Quiet())
    monkeypatch.setattr(selftest, "emulator_digest", lambda: "another")
    calls = []
    real = runner.run_all
    monkeypatch.setattr(selftest, "run_all", lambda *args, **options: calls.append(1) or real(*args, **options))
    ensure_tested((machine,), Quiet())
    assert calls == [1]


def test_wrong_outputs_fail(executorch, fresh):
    """QEMU 7.2's `max`, which computes garbage, under the name that it would be let through by."""
    broken = Machine(runtime=executorch, cpu=dataclasses.replace(find_cpu("cortex-a76"), name="max"))
    if "7.2" not in selftest_version():
        pytest.skip("another QEMU than 7.2")
    with pytest.raises(EnvironmentProblem, match=r"executorch 1\.5\.1 on max fails its self-test") as caught:
        ensure_tested((broken,), Quiet())
    assert caught.value.exit_code == 9
    assert not list(fresh.rglob("*.json"))


def selftest_version() -> str:
    from edgeq.verify.emulate.cpus import qemu_version

    return qemu_version()


def test_a_core_that_is_taken_for_another_fails(executorch, fresh):
    cpu = dataclasses.replace(find_cpu("cortex-a53"), uarch=1)
    with pytest.raises(EnvironmentProblem, match="did not recognize the emulated"):
        ensure_tested((Machine(runtime=executorch, cpu=cpu),), Quiet())


def test_a_crash_fails_with_its_signal(executorch, fresh):
    cpu = dataclasses.replace(find_cpu("cortex-a76"), name="cortex-a53")
    with pytest.raises(EnvironmentProblem, match="SIGILL"):
        ensure_tested((Machine(runtime=executorch, cpu=cpu),), Quiet())
