"""An interrupt is not lost in a library."""

from __future__ import annotations

import signal

import pytest

from edgeq.report.progress import Interruptible, Quiet


def test_a_step_raises_an_interrupt_again_that_a_library_dropped() -> None:
    came: list[int] = []
    progress = Interruptible(Quiet(), came)
    with progress.task("calibrate", 2) as task:
        task.advance()
        came.append(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            task.advance()
        came.clear()
    came.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), progress.task("lower"):
        raise AssertionError("the step began")
