from __future__ import annotations

import struct

import pytest

from edgeq.core.vela import stream_blocks


def block(name: str, data: bytes, *, is_elsewhere: bool = False) -> bytes:
    head = struct.pack("<16sIB11s", name.encode(), len(data), is_elsewhere, b"")
    return head + data + b"\0" * (-len(data) % 16)


WHOLE = block("vela_bin_stream", b"") + block("cmd_data", b"abc") + block("vela_end_stream", b"")


def test_the_blocks_of_a_stream() -> None:
    assert stream_blocks(WHOLE) == {"vela_bin_stream": b"", "cmd_data": b"abc", "vela_end_stream": b""}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends in the middle"),
        (WHOLE[:-32], "ends in the middle"),
        (WHOLE[:66], "refers to what is not in it"),
        (block("cmd_data", b"abc", is_elsewhere=True) + WHOLE, "refers to what is not in it"),
    ],
)
def test_a_broken_stream_is_told(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stream_blocks(data)
