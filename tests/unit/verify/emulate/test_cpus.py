from __future__ import annotations

import pytest

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError
from edgeq.verify.emulate import cpus
from edgeq.verify.emulate.cpus import CPUS, find_cpu, make_root, proc_cpuinfo


@pytest.fixture
def qemu72(monkeypatch):
    """QEMU 7.2's list of models."""
    monkeypatch.setattr(cpus, "qemu_path", lambda: "qemu-aarch64")
    monkeypatch.setattr(cpus, "_version_of", lambda _path: "QEMU 7.2.22")
    known = ("a64fx", "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "max", "neoverse-n1")
    monkeypatch.setattr(cpus, "_cpus_of", lambda _path: known)


def test_known_models_are_found(qemu72):
    assert find_cpu("cortex-a76").part == 0xD0B


@pytest.mark.parametrize("name", ["max", "max,sme=off"])
def test_max_is_refused_by_name_with_the_one_to_use(qemu72, name):
    with pytest.raises(UnsupportedError, match="emulates them wrongly") as caught:
        find_cpu(name)
    assert "cortex-a76" in caught.value.fix


def test_an_unknown_model_lists_those_that_qemu_has(qemu72):
    with pytest.raises(UsageError, match="Did you mean 'cortex-a76'") as caught:
        find_cpu("cortex-a77")
    assert "cortex-a35, cortex-a53, cortex-a57, cortex-a72, cortex-a76, neoverse-n1" in caught.value.fix
    assert "a64fx" not in caught.value.fix  # no phone's


def test_a_model_that_this_qemu_is_too_old_for(qemu72):
    with pytest.raises(UnsupportedError, match=r"QEMU 7\.2\.22 does not know the CPU 'cortex-a55'"):
        find_cpu("cortex-a55")


def test_without_qemu_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(cpus.shutil, "which", lambda _name: None)
    with pytest.raises(EnvironmentProblem, match="qemu-aarch64 is missing") as caught:
        find_cpu("cortex-a53")
    assert "apt-get install qemu-user g++-aarch64-linux-gnu" in caught.value.fix
    assert caught.value.exit_code == 9


def test_without_the_c_library_the_line_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(cpus, "SYSROOT", tmp_path / "none")
    with pytest.raises(EnvironmentProblem, match="C library") as caught:
        make_root(CPUS[0], tmp_path)
    assert "apt-get install g++-aarch64-linux-gnu" in caught.value.fix


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.name)
def test_cpuinfo_names_the_part_for_every_processor(cpu):
    blocks = proc_cpuinfo(cpu).strip().split("\n\n")
    assert len(blocks) == cpus.CORES
    for index, block in enumerate(blocks):
        fields = dict(line.split(":", 1) for line in block.splitlines())
        values = {key.strip(): value.strip() for key, value in fields.items()}
        assert values["processor"] == str(index)
        assert int(values["CPU part"], 16) == cpu.part
        assert int(values["CPU implementer"], 16) == 0x41


def test_roots_differ_by_model(tmp_path, monkeypatch):
    sysroot = tmp_path / "sysroot"
    (sysroot / "lib").mkdir(parents=True)
    (sysroot / "lib/ld-linux-aarch64.so.1").touch()
    monkeypatch.setattr(cpus, "SYSROOT", sysroot)
    texts = {(make_root(cpu, tmp_path) / "proc/cpuinfo").read_text() for cpu in CPUS}
    assert len(texts) == len(CPUS)
    assert (make_root(CPUS[0], tmp_path) / "lib/ld-linux-aarch64.so.1").exists()
