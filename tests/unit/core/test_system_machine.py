"""What tells one machine from another: cached results hold on machines of the same kernels, times on one kind only."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core import system
from edgeq.core.system import kernel_features, processor_kind

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
    kernel_features.cache_clear()
    processor_kind.cache_clear()
    return kernel_features()


@pytest.fixture(autouse=True)
def fresh():
    yield
    kernel_features.cache_clear()
    processor_kind.cache_clear()


def test_processors_of_one_name_are_told_apart_by_their_extensions(tmp_path, monkeypatch):
    plain = facts(tmp_path, X86.format(mhz=2500, flags=""), monkeypatch)
    assert facts(tmp_path, X86.format(mhz=2600, flags="rdrand"), monkeypatch) == plain
    assert facts(tmp_path, X86.format(mhz=2500, flags="avx_vnni"), monkeypatch) != plain


def test_vendors_are_told_apart_whose_kernels_math_libraries_choose_by(tmp_path, monkeypatch):
    intel, amd = (f"vendor_id\t: {vendor}\nflags\t\t: avx2\n" for vendor in ("GenuineIntel", "AuthenticAMD"))
    assert facts(tmp_path, intel, monkeypatch) != facts(tmp_path, amd, monkeypatch)


def test_arm_processors_which_have_no_name_are_told_apart_by_their_parts(tmp_path, monkeypatch):
    assert facts(tmp_path, ARM.format(part="0xd03"), monkeypatch) != facts(
        tmp_path, ARM.format(part="0xd0b"), monkeypatch
    )


def test_a_machine_with_fewer_cores_has_the_kernels_and_not_the_times(tmp_path, monkeypatch):
    two, kind = facts(tmp_path, X86, monkeypatch), processor_kind()
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(64)))
    assert facts(tmp_path, X86, monkeypatch) == two
    assert processor_kind() == kind.replace(kind.rpartition(", ")[2], "64 cores") == "AMD EPYC, 64 cores"


def test_machines_of_one_name_are_told_apart_by_their_stepping(tmp_path, monkeypatch):
    kinds = []
    for family in ("23", "25"):
        facts(tmp_path, f"{X86}cpu family\t: {family}\nmodel\t\t: 1\nstepping\t: 2\n", monkeypatch)
        kinds.append(processor_kind().partition(",")[0])
    assert kinds == ["AMD EPYC (23/1/2)", "AMD EPYC (25/1/2)"]


def test_a_processor_without_known_features_counts_by_its_name(tmp_path, monkeypatch):
    assert facts(tmp_path, "model name\t: Odd\n", monkeypatch) == ("Odd",)
