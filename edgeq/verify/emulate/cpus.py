"""The CPU models that edgeq emulates, and the files by which a runtime recognizes each.

Kernels are chosen by what pytorch/cpuinfo finds: the features from the auxiliary vector, which QEMU fills for the
model, and the micro-architecture from /proc/cpuinfo, where QEMU before 8.2 shows the host's. So every model has a root
folder of its own for `qemu-aarch64 -L`, with its own /proc/cpuinfo.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError, nearest
from edgeq.core.files import canonical_json, sha256_bytes, sha256_file

QEMU = "qemu-aarch64"

QEMU_FIX = "apt-get install qemu-user"

SYSROOT = Path("/usr/aarch64-linux-gnu")  # where Debian and Ubuntu put the cross compiler's libraries

CORES = 4

_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"

_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A CPU model.

    Attributes:
        name: QEMU's name, and that in target profiles.
        part: the part number in the main ID register; the implementer is Arm (0x41).
        variant, revision: of the same register, as QEMU has them.
        features: as Linux lists them in /proc/cpuinfo.
        uarch: the code that pytorch/cpuinfo gives the core (`enum cpuinfo_uarch` in its cpuinfo.h).
    """

    name: str
    part: int
    variant: int
    revision: int
    features: str
    uarch: int


# Part numbers: Arm's Technical Reference Manuals, MIDR_EL1; variant and revision: QEMU's target/arm/cpu64.c
CPUS = (
    Cpu(name="cortex-a35", part=0xD04, variant=1, revision=0, features=_V8, uarch=0x00300335),
    Cpu(name="cortex-a53", part=0xD03, variant=0, revision=4, features=_V8, uarch=0x00300353),
    Cpu(name="cortex-a55", part=0xD05, variant=2, revision=0, features=_V82, uarch=0x00300355),
    Cpu(name="cortex-a57", part=0xD07, variant=1, revision=0, features=_V8, uarch=0x00300357),
    Cpu(name="cortex-a72", part=0xD08, variant=0, revision=3, features=_V8, uarch=0x00300372),
    Cpu(name="cortex-a76", part=0xD0B, variant=4, revision=1, features=_V82, uarch=0x00300376),
    Cpu(name="neoverse-n1", part=0xD0C, variant=4, revision=1, features=_V82, uarch=0x00300400),
)


def find_cpu(name: str) -> Cpu:
    """Return the model of that name, if this host's QEMU has it too.

    Raises:
        UsageError: an unknown name; the message lists the available ones.
        UnsupportedError: QEMU's `max`, whose results cannot be trusted, or a model that this QEMU is too old for.
        EnvironmentProblem: QEMU is missing.
    """
    if name.partition(",")[0] == "max":
        what = f"the CPU {name!r} is not supported: QEMU's `max` has SME and SVE, and QEMU 7.2 emulates them wrongly"
        raise UnsupportedError(what, "use cortex-a76 (with dot-product kernels) or cortex-a53 (without)")
    here = qemu_cpus()
    usable = tuple(cpu.name for cpu in CPUS if cpu.name in here)
    known = {cpu.name: cpu for cpu in CPUS}
    if name in known and name not in here:
        what = f"{qemu_version()} does not know the CPU {name!r}"
        raise UnsupportedError(what, f"install a newer QEMU, or use one of: {', '.join(usable)}")
    if name not in known:
        raise UsageError(f"unknown CPU {name!r}.{nearest(name, usable)}", f"use one of: {', '.join(usable)}")
    return known[name]


def qemu_path() -> str:
    """Return where QEMU is.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    found = shutil.which(QEMU)
    if found is None:
        what = f"{QEMU} is missing; edgeq needs it to run the device's ARM64 runtimes on this host"
        raise EnvironmentProblem(what, f"{QEMU_FIX} g++-aarch64-linux-gnu, or verify on this host only: --on host")
    return found


def qemu_version() -> str:
    """Return QEMU's version as text, such as `QEMU 7.2.22`."""
    return _version_of(qemu_path())


@functools.cache
def _version_of(path: str) -> str:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    return f"QEMU {found[1]}" if found else "QEMU of unknown version"


def qemu_cpus() -> tuple[str, ...]:
    """Return the names that QEMU lists for `-cpu help`."""
    return _cpus_of(qemu_path())


@functools.cache
def _cpus_of(path: str) -> tuple[str, ...]:
    said = subprocess.run([path, "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    return tuple(line.split()[0] for line in said.splitlines() if line.startswith("  "))


@functools.cache
def emulator_digest() -> str:
    """Hash what emulation depends on outside edgeq: QEMU's binary and the ARM64 C library."""
    qemu = shutil.which(QEMU)
    files = [Path(qemu) if qemu else None, SYSROOT / "lib/libc.so.6", SYSROOT / "lib/libm.so.6"]
    return sha256_bytes(canonical_json([sha256_file(path) if path and path.is_file() else None for path in files]))


def proc_cpuinfo(cpu: Cpu) -> str:
    """Return /proc/cpuinfo as Linux on this core writes it."""
    core = (
        "processor\t: {index}\nBogoMIPS\t: 38.40\n"
        f"Features\t: {cpu.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x{cpu.variant:x}\nCPU part\t: 0x{cpu.part:03x}\nCPU revision\t: {cpu.revision}\n"
    )
    return "\n".join(core.format(index=index) for index in range(CORES)) + "\n"


def make_root(cpu: Cpu, folder: Path) -> Path:
    """Make the root folder for `qemu-aarch64 -L`: the cross compiler's libraries, and this core's own files.

    Raises:
        EnvironmentProblem: the libraries are not installed.
    """
    if not (SYSROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        what = f"the ARM64 C library is missing: no {SYSROOT}/lib/ld-linux-aarch64.so.1"
        raise EnvironmentProblem(what, "apt-get install g++-aarch64-linux-gnu")
    root = folder / f"root-{cpu.name}"
    if root.exists():
        return root
    system = root / "sys/devices/system/cpu"
    system.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "lib").symlink_to(SYSROOT / "lib")
    (root / "proc/cpuinfo").write_text(proc_cpuinfo(cpu))
    for name in ("possible", "present", "online"):
        (system / name).write_text(f"0-{CORES - 1}\n")
    (system / "kernel_max").write_text(f"{CORES - 1}\n")
    return root
