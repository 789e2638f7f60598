"""Binary patches: zstandard's patch-from and bsdiff4, the smaller one wins. Output is bounded, and checked before use.

Neither format knows its base: with a wrong one both return wrong bytes without an error. So hashes of base, patch and
output stand in the signed index, and every one is checked here.
"""

from __future__ import annotations

import bz2
from dataclasses import dataclass
from typing import Literal

from edgeq._io import sha256_bytes
from edgeq.errors import IntegrityError, first_line

Algorithm = Literal["zstd", "bsdiff4"]

# 19 finds no more than 12 on quantized weights, and 3 finds nothing
_ZSTD_LEVEL = 12
# bsdiff4 sorts suffixes, in fifteen times its input of memory
_BSDIFF_MOST_BYTES = 64 * 2**20
_MAX_WINDOW_LOG = 31
_CHUNK_BYTES = 1 << 20
_BSDIFF_HEAD_BYTES = 32
_CONTROL_TRIPLE_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What takes one plain form to another."""

    algorithm: Algorithm
    data: bytes
    base_sha256: str
    output_sha256: str
    output_bytes: int


def make_patch(base: bytes, output: bytes) -> Patch:
    """Return the smaller patch from `base` to `output`; each was applied again before it is returned."""
    made: dict[Algorithm, bytes] = {"zstd": _zstd_diff(base, output)}
    if max(len(base), len(output)) <= _BSDIFF_MOST_BYTES:
        made["bsdiff4"] = _bsdiff(base, output)
    algorithm = min(made, key=lambda name: len(made[name]))
    patch = Patch(
        algorithm=algorithm,
        data=made[algorithm],
        base_sha256=sha256_bytes(base),
        output_sha256=sha256_bytes(output),
        output_bytes=len(output),
    )
    apply_patch(patch, base)
    return patch


def apply_patch(patch: Patch, base: bytes) -> bytes:
    """Return the patch's output: the very bytes that its hash names, or an error, never others.

    Raises:
        IntegrityError: another base, a damaged patch, or one that would give more than it says.
    """
    if sha256_bytes(base) != patch.base_sha256:
        raise _refused("it was made for another base")
    run = {"zstd": _zstd_apply, "bsdiff4": _bsdiff_apply}[patch.algorithm]
    try:
        output = run(base, patch.data, patch.output_bytes)
    except IntegrityError:
        raise
    except Exception as err:  # both libraries raise several kinds on damaged bytes
        raise _refused(f"it is damaged: {first_line(err)}") from err
    if len(output) != patch.output_bytes or sha256_bytes(output) != patch.output_sha256:
        raise _refused("its output is not what the signed index names")
    return output


def _refused(why: str) -> IntegrityError:
    return IntegrityError(f"the patch is refused: {why}", "update again: the full download is taken then")


def _window_log(base_bytes: int, output_bytes: int) -> int:
    """Return the window that reaches from the output's end to the base's start, as zstd's --patch-from takes it."""
    return min(max((base_bytes + output_bytes).bit_length(), 10), _MAX_WINDOW_LOG)


def _zstd_diff(base: bytes, output: bytes) -> bytes:
    import zstandard

    known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        source_size=len(output),
        dict_size=len(base),
        window_log=_window_log(len(base), len(output)),
        enable_ldm=True,
        write_checksum=True,
    )
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(output)


def _zstd_apply(base: bytes, data: bytes, output_bytes: int) -> bytes:
    import zstandard

    known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window = 1 << _window_log(len(base), output_bytes)
    parts, rest = [], output_bytes + 1
    with zstandard.ZstdDecompressor(dict_data=known, max_window_size=window).stream_reader(data) as reader:
        while rest > 0 and (part := reader.read(min(rest, _CHUNK_BYTES))):
            parts.append(part)
            rest -= len(part)
    if rest <= 0:
        raise _refused(f"it gives more than the {output_bytes} bytes that the index names")
    return b"".join(parts)


def _bsdiff(base: bytes, output: bytes) -> bytes:
    import bsdiff4

    data: bytes = bsdiff4.diff(base, output)
    return data


def _bsdiff_apply(base: bytes, data: bytes, output_bytes: int) -> bytes:
    """Apply by the library's core; its front would inflate whatever the patch holds."""
    from bsdiff4 import core

    if data[:8] != b"BSDIFF40" or len(data) < _BSDIFF_HEAD_BYTES:
        raise _refused("it is no bsdiff4 patch")
    control_bytes, diff_bytes, says_bytes = (core.decode_int64(data[i : i + 8]) for i in (8, 16, 24))
    if says_bytes != output_bytes:
        raise _refused(f"it gives {says_bytes} bytes, the index names {output_bytes}")
    if min(control_bytes, diff_bytes) < 0 or _BSDIFF_HEAD_BYTES + control_bytes + diff_bytes > len(data):
        raise _refused("it is cut off")
    diff_at = _BSDIFF_HEAD_BYTES + control_bytes
    # a control triple that yields nothing is of no use, so there are never more than bytes
    most = _CONTROL_TRIPLE_BYTES * min(output_bytes + 1, 1 << 20)
    control = _inflated(data[_BSDIFF_HEAD_BYTES:diff_at], most)
    if len(control) % _CONTROL_TRIPLE_BYTES:
        raise _refused("it is damaged: its control block is cut off")
    diff = _inflated(data[diff_at : diff_at + diff_bytes], output_bytes)
    extra = _inflated(data[diff_at + diff_bytes :], output_bytes)
    if len(diff) + len(extra) != output_bytes:
        raise _refused("it is damaged: its parts do not add up to its output")
    output: bytes = core.patch(base, output_bytes, control, diff, extra)
    return output


def _inflated(data: bytes, most: int) -> bytes:
    engine = bz2.BZ2Decompressor()
    output = engine.decompress(data, most + 1)
    if len(output) > most:
        raise _refused("it would inflate to more than its output")
    if not engine.eof:
        raise _refused("it is cut off")
    return output
