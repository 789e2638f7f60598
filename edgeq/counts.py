"""What one inference makes a core do: instructions by class, bytes, and cache lines fetched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

# sizes of the caches that `lines_*` are counted for, as src/caches.h has them
CACHE_KIB = (32, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Instructions of one inference by class, and its memory traffic. All are whole numbers.

    Attributes:
        fp_mac: vector float multiplies, with or without accumulation.
        int_mac: vector integer multiplies, widening or not, with or without accumulation.
        dot, i8mm: int8 dot products, and int8 matrix products.
        neon: the other vector instructions.
        load, store: memory accesses of any register; prefetches are loads of no bytes.
        branch, scalar: the rest of what every A64 core has.
        other: SVE, SME and what the decoder does not know.
        bytes_loaded, bytes_stored: by these instructions.
        lines_32k … lines_4096k: 64-byte lines that a cache of this size would fetch, if it were alone behind a first
            level of 32 KiB; least recently used, 16 ways, no prefetching.
    """

    fp_mac: int = 0
    int_mac: int = 0
    dot: int = 0
    i8mm: int = 0
    neon: int = 0
    load: int = 0
    store: int = 0
    branch: int = 0
    scalar: int = 0
    other: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    lines_32k: int = 0
    lines_256k: int = 0
    lines_512k: int = 0
    lines_1024k: int = 0
    lines_2048k: int = 0
    lines_4096k: int = 0

    @property
    def instructions(self) -> int:
        """All instructions."""
        return sum(getattr(self, name) for name in CLASSES)

    @property
    def macs_in_vectors(self) -> int:
        """Vector multiplies of all kinds."""
        return self.fp_mac + self.int_mac + self.dot + self.i8mm

    def lines(self, cache_kib: float) -> int:
        """Return the lines that a last-level cache of about this size fetches: those of the nearest size counted."""
        nearest = min(CACHE_KIB[1:], key=lambda kib: abs(kib - cache_kib))
        return int(getattr(self, f"lines_{nearest}k"))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) - getattr(other, name) for name in COUNTERS})

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTERS})


# in the order in which src/count_plugin.c writes them
COUNTERS = tuple(field.name for field in fields(Counts))
CLASSES = COUNTERS[: COUNTERS.index("bytes_loaded")]


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum."""
    return sum(counts, Counts())


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCounts:
    """What one operator of an inference costs; the name is the runtime's own."""

    name: str
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class CountReport:
    """What one inference costs on one core, in the steady state and on one thread.

    Attributes:
        cpu: the core.
        total: of the runtime's whole call, without the runtime's profiler.
        operators: in the order of execution, the time between them under "(runtime)"; none where that was not asked
            for, or could not be told. They are counted with the profiler on, which costs a little itself.
        why_no_operators: the reason, where they could not be told.
    """

    cpu: str
    total: Counts
    operators: tuple[OperatorCounts, ...] = ()
    why_no_operators: str = ""
