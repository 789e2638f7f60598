"""What tells one machine from another: cached verdicts hold on machines of the same kernels only."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core import system
from edgeq.core.system import processor_facts, processor_name

X86 = """processor\t: 0
model name\t: AMD EPYC
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2 {flags}

processor\t: 1
model name\t: AMD EPYC
cpu MHz\t\t: 3000
flags\t\t: fpu avx2 {flags}
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"


def facts(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    (path / "cpuinfo").write_text(text)
    monkeypatch.setattr(system, "_CPUINFO", path / "cpuinfo")
    processor_facts.cache_clear()
    return processor_facts()


@pytest.fixture(autouse=True)
def fresh():
    yield
    processor_facts.cache_clear()


def test_processors_of_one_name_are_told_apart_by_their_extensions(tmp_path, monkeypatch):
    plain = facts(tmp_path, X86.format(mhz=2500, flags=""), monkeypatch)
    assert plain[0] == processor_name() == "AMD EPYC"
    assert facts(tmp_path, X86.format(mhz=2600, flags=""), monkeypatch) == plain
    assert facts(tmp_path, X86.format(mhz=2500, flags="avx_vnni"), monkeypatch) != plain


def test_arm_processors_which_have_no_name_are_told_apart_by_their_parts(tmp_path, monkeypatch):
    assert facts(tmp_path, ARM.format(part="0xd03"), monkeypatch) != facts(
        tmp_path, ARM.format(part="0xd0b"), monkeypatch
    )


def test_a_machine_with_fewer_cores_is_another(tmp_path, monkeypatch):
    two = facts(tmp_path, X86, monkeypatch)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert facts(tmp_path, X86, monkeypatch) != two
