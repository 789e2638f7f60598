from __future__ import annotations

import bz2
import dataclasses

import numpy as np
import pytest

from edgeq.core.errors import IntegrityError
from edgeq.core.files import sha256_bytes
from edgeq.deliver.ota import patch as patches
from edgeq.deliver.ota.patch import Patch, apply_patch, make_patch


def weights(seed: int, size: int = 20_000) -> bytes:
    return np.random.default_rng(seed).normal(0, 20, size).astype(np.int8).tobytes()


def changed(data: bytes, seed: int) -> bytes:
    """Change some bytes, insert a block, and drop one."""
    rng = np.random.default_rng(seed)
    output = bytearray(data)
    for at in rng.integers(0, len(output), rng.integers(1, 400)):
        output[at] ^= int(rng.integers(1, 256))
    at = int(rng.integers(0, len(output)))
    output[at:at] = rng.bytes(int(rng.integers(0, 500)))
    cut = int(rng.integers(0, len(output) - 200))
    del output[cut : cut + int(rng.integers(0, 200))]
    return bytes(output)


def made(algorithm: str, base: bytes, output: bytes) -> Patch:
    data = {"zstd": patches._zstd_diff, "bsdiff4": patches._bsdiff}[algorithm](base, output)
    return Patch(
        algorithm=algorithm,  # type: ignore[arg-type]
        data=data,
        base_sha256=sha256_bytes(base),
        output_sha256=sha256_bytes(output),
        output_bytes=len(output),
    )


@pytest.mark.parametrize("seed", range(20))
def test_round_trips(seed: int) -> None:
    base = weights(seed, 1 + 997 * seed)
    output = changed(base, seed) if len(base) > 500 else weights(seed + 1, 700)
    patch = make_patch(base, output)
    assert apply_patch(patch, base) == output
    for algorithm in ("zstd", "bsdiff4"):
        assert apply_patch(made(algorithm, base, output), base) == output
    assert len(patch.data) == min(len(made(name, base, output).data) for name in ("zstd", "bsdiff4"))


def test_a_patch_is_small_where_little_changed() -> None:
    base = weights(0, 200_000)
    assert len(make_patch(base, changed(base, 1)).data) < 4_000


def test_a_zstd_patch_reaches_the_start_of_a_large_base() -> None:
    base = np.random.default_rng(0).bytes(20_000_000)
    patch = made("zstd", base, base[:100] + b"x" + base[101:])
    assert len(patch.data) < 5_000


def test_empty_ends() -> None:
    for base, output in ((b"", b"some bytes"), (b"some bytes", b""), (b"", b"")):
        assert apply_patch(make_patch(base, output), base) == output


@pytest.mark.parametrize("algorithm", ["zstd", "bsdiff4"])
def test_refuses_a_wrong_base(algorithm: str) -> None:
    base, other = weights(0), weights(1)
    patch = made(algorithm, base, changed(base, 2))
    with pytest.raises(IntegrityError, match="another base"):
        apply_patch(patch, other)
    # even where the base's hash is forged, no wrong bytes come out
    with pytest.raises(IntegrityError, match="patch is refused"):
        apply_patch(dataclasses.replace(patch, base_sha256=sha256_bytes(other)), other)


@pytest.mark.parametrize("algorithm", ["zstd", "bsdiff4"])
def test_mutated_patches_are_refused(algorithm: str) -> None:
    base = weights(3, 4_000)
    output = changed(base, 4)
    patch = made(algorithm, base, output)
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(50):
        data = bytearray(patch.data)
        if rng.integers(0, 4) == 0:
            del data[int(rng.integers(0, len(data))) :]
        else:
            data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        try:
            assert apply_patch(dataclasses.replace(patch, data=bytes(data)), base) == output
        except IntegrityError:
            refused += 1
    assert refused >= 45  # a bit that means nothing may be flipped


def test_bounds_what_a_patch_gives() -> None:
    base = weights(0)
    patch = made("zstd", base, bytes(100_000))
    with pytest.raises(IntegrityError, match="larger than the 90000 bytes"):
        apply_patch(dataclasses.replace(patch, output_bytes=90_000), base)
    large = made("zstd", base, bytes(50_000_000))
    assert len(large.data) < 10_000
    with pytest.raises(IntegrityError, match="too much memory"):  # nor may it ask for a window of that size
        apply_patch(dataclasses.replace(large, output_bytes=1000), base)


def test_bounds_what_a_bsdiff_block_inflates_to() -> None:
    base = weights(0)
    bomb = bz2.compress(bytes(30_000_000))

    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    for blocks in ((bomb, bz2.compress(b"")), (bz2.compress(b""), bomb)):
        head = b"BSDIFF40" + number(len(blocks[0])) + number(len(blocks[1])) + number(1000)
        patch = dataclasses.replace(
            made("bsdiff4", base, bytes(1000)), data=head + b"".join(blocks) + bz2.compress(b"")
        )
        with pytest.raises(IntegrityError, match="inflate to more"):
            apply_patch(patch, base)


@pytest.mark.parametrize("data", [b"", b"BSDIFF40", b"BSDIFF40" + b"\xff" * 24, b"BSDIFF40" + b"\x7f" * 40])
def test_refuses_what_is_no_bsdiff_patch(data: bytes) -> None:
    base = weights(0)
    with pytest.raises(IntegrityError):
        apply_patch(dataclasses.replace(made("bsdiff4", base, base), data=data), base)
