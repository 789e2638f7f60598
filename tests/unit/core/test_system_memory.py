"""What is free, and what only cycles hold."""

from __future__ import annotations

import gc
import os
import weakref

from edgeq.core.system import available_bytes, release_memory


class _Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_only_cycles_hold_is_released() -> None:
    gc.disable()
    try:
        seen = weakref.ref(_Node())
        assert seen() is not None
        release_memory()
        assert seen() is None
    finally:
        gc.enable()


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
