"""What is free, and what only cycles hold."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from edgeq.core.system import available_bytes, rare_collections, release_memory


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


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen, as in a process of the user's; the tests' own conftest freezes what they share."""
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    yield
    gc.unfreeze()
    if was_frozen:
        gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_a_long_block_is_collected_less_often_and_what_was_there_before_not_at_all() -> None:
    before = gc.get_threshold()
    old = _Node()
    with rare_collections():
        assert gc.get_threshold() == (before[0], before[1], 10 * before[2])
        seen = weakref.ref(old)
        new = weakref.ref(_Node())
        del old
        gc.collect()
        assert new() is None
        assert seen() is not None
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


@pytest.mark.usefixtures("thawed")
def test_what_a_caller_froze_stays_frozen() -> None:
    frozen = weakref.ref(_Node())
    gc.freeze()
    with rare_collections():
        gc.collect()
        assert frozen() is not None
    gc.collect()
    assert frozen() is not None
    gc.unfreeze()
    gc.collect()
    assert frozen() is None


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
