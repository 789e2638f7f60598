"""The two pipes to a child process, with a deadline for whole frames: a child may stop in the middle of one."""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field

from edgeq.verify.child import Child

_PART_BYTES = 1 << 20


@dataclass(slots=True)
class Pipe:
    """A stream to read answers from and write requests to. It raises TimeoutError once `allow`'s time is over.

    Bytes go past the buffers of the child's streams: what lay in one would be invisible to `select`.
    """

    child: Child
    _deadline: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Let a write return when the pipe is full, rather than wait for a child that reads no more."""
        os.set_blocking(self.child.requests.fileno(), False)

    def allow(self, seconds: float) -> None:
        """Set the time from now in which everything is to be read and written."""
        self._deadline = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are any; none at the end."""
        descriptor = self.child.replies.fileno()
        if not select.select([descriptor], [], [], self._left())[0]:
            raise TimeoutError
        return os.read(descriptor, min(size, _PART_BYTES))

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        descriptor, rest = self.child.requests.fileno(), memoryview(data)
        while rest:
            if not select.select([], [descriptor], [], self._left())[1]:
                raise TimeoutError
            rest = rest[os.write(descriptor, rest[:_PART_BYTES]) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())
