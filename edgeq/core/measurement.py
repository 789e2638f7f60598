"""verdict.json: measurements of a bundle from another machine, to be judged here.

It holds measurements without verdicts: each inference's time, and the outputs of the golden samples. The reader
evaluates gates from them. It names the bundle by digest, and is not signed.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Final, Literal

from pydantic import Field

from edgeq.core.manifest import Count, Dtype, Sha256
from edgeq.core.schema import Strict, document_bytes, parse_strict

SCHEMA_VERSION: Final = 1

MAX_VERDICT_BYTES = 64_000_000  # golden outputs take some kilobytes, those of a segmentation net many megabytes

ITEM_BYTES: dict[Dtype, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}

Text = Annotated[str, Field(min_length=1, max_length=200)]

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DeviceFacts(Strict):
    """The device of the measurement."""

    name: Text = Field(description="the device's model, and how it was reached")
    platform: Literal["android", "ios", "linux", "macos"]
    os: Text = Field(description="the operating system with its version")
    arch: Literal["arm64", "x86_64"]
    cores: Count = Field(description="0 if unknown")
    is_virtual: bool = Field(description="an emulated device, whose times are not meaningful")


class RunFacts(Strict):
    """One sample, run repeatedly in a separate process."""

    runtime: Text = Field(description="package and version")
    threads: int = Field(ge=1, le=64)
    warmup: Count
    latencies_ms: tuple[Milliseconds, ...] = Field(min_length=1, max_length=100_000)
    load_ms: Milliseconds | None
    peak_memory_bytes: Count | None


class OutputFacts(Strict):
    """One output for all golden samples, from the device."""

    dtype: Dtype
    shape: tuple[Count, ...] = Field(min_length=1, max_length=16, description="samples first")
    data: str = Field(description="little-endian, in C order, in base64")

    def model_post_init(self, _context: object) -> None:
        """Check that the data are as many as the shape says."""
        if len(self.raw) != math.prod(self.shape) * ITEM_BYTES[self.dtype]:
            raise ValueError(f"{len(self.raw)} bytes of data for {self.dtype} {list(self.shape)}")

    @property
    def raw(self) -> bytes:
        """The data.

        Raises:
            ValueError: they are not base64.
        """
        try:
            return base64.b64decode(self.data, validate=True)
        except binascii.Error as err:
            raise ValueError(f"the data are not base64: {err}") from err


class Verdict(Strict):
    """A verdict.json."""

    schema_version: Literal[1]
    bundle: Sha256 = Field(description="the digest of the bundle that was measured")
    edgeq: Text = Field(description="the version that measured it")
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    device: DeviceFacts
    run: RunFacts
    outputs: tuple[OutputFacts, ...] = Field(min_length=1, max_length=1000)


def verdict_bytes(verdict: Verdict) -> bytes:
    """Return the verdict's bytes.

    Raises:
        UsageError: it would be larger than `parse_verdict` reads.
    """
    fix = "the golden outputs are too large for a verdict: verify with --on where the bundle is"
    return document_bytes(verdict, what="verdict", most_bytes=MAX_VERDICT_BYTES, fix=fix)


def parse_verdict(data: bytes, name: str) -> Verdict:
    """Return the verdict that `data` holds; any bytes give one, or one of the errors below.

    Args:
        data: the file's bytes.
        name: of the file, for messages.

    Raises:
        IntegrityError: too large, not JSON, a duplicate or unknown key, a negative time, NaN, or data of another size.
        UnsupportedError: a newer schema than this edgeq knows.
    """
    return parse_strict(
        data,
        Verdict,
        name=name,
        version=SCHEMA_VERSION,
        most_bytes=MAX_VERDICT_BYTES,
        again="measure again: edgeq verify BUNDLE --write-verdict FILE",
    )
