"""The manifest as a whole: the one contract between edgeq, app and update channel, and how its bytes are read.

It holds no times, no paths and nothing of the machine that built it, so that equal inputs give equal bytes. Measured
numbers are rounded to four significant digits, so that noise in the last bits does not change the digest.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal

from pydantic import Field

from edgeq.errors import UsageError
from edgeq.manifest.facts import (
    SLUG,
    Accuracy,
    CudaBox,
    EmulationFacts,
    FileEntry,
    GateVerdict,
    GoldenFacts,
    LayerSummary,
    ModelFacts,
    ParityFacts,
    Provenance,
    RuntimeRange,
    Slug,
    TargetFacts,
    Tensor,
)
from edgeq.strict import Strict, document_bytes, parse_strict

SCHEMA_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
REPORT_NAMES = ("report.json", "report.html")
MAX_MANIFEST_BYTES = 4_000_000


class Manifest(Strict):
    """manifest.json of a bundle."""

    schema_version: Literal[1]
    model: ModelFacts
    target: TargetFacts
    runtime: RuntimeRange
    scheme: Slug
    threads: int = Field(ge=1, le=64, description="threads that the app should use")
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = Field(description="by output index")
    files: tuple[FileEntry, ...] = Field(min_length=2, max_length=4)
    dynamic_batch: bool = Field(
        default=False,
        exclude_if=lambda is_open: not is_open,
        description="whether inputs and outputs may have any first size, and not only the stated one",
    )
    passes: tuple[str, ...]
    layers: LayerSummary
    gates: tuple[GateVerdict, ...]
    accepted: bool = Field(description="whether every gate passed")
    accuracy: Accuracy | None
    graph_accuracy: Accuracy | None = Field(
        default=None, description="the converted graph against fp32, where the artifact was not run; null: it was"
    )
    parity: ParityFacts | None
    golden: GoldenFacts
    emulation: EmulationFacts | None = Field(default=None, description="null: not run on the device's kernels")
    not_emulated: str | None = Field(default=None, description="why, where the target has a device")
    cuda: CudaBox | None = Field(
        default=None, exclude_if=lambda box: box is None, description="absent for other runtimes"
    )
    verified_on: str = Field(description="what ran the artifact, by architecture, or nothing")
    provenance: Provenance

    def model_post_init(self, _context: object) -> None:
        """Check what a single field cannot."""
        roles = [entry.role for entry in self.files]
        if len(set(roles)) != len(roles) or not {"artifact", "golden"} <= set(roles):
            raise ValueError("expected one artifact and one golden file, and no role twice")
        names = [name.lower() for name in (*(entry.path for entry in self.files), MANIFEST_NAME, *REPORT_NAMES)]
        if len(set(names)) != len(names):
            raise ValueError("two files share a name, or take the manifest's or a report's")
        if self.accepted != all(gate.outcome in ("ok", "allowed") for gate in self.gates):
            raise ValueError("`accepted` contradicts the gates")

    def file(self, role: Literal["artifact", "golden"]) -> FileEntry:
        """Return the entry of the artifact or of the golden file."""
        return next(entry for entry in self.files if entry.role == role)

    def compiled(self) -> FileEntry | None:
        """Return the entry of the package that was compiled for one GPU; None where there is none."""
        return next((entry for entry in self.files if entry.role == "compiled"), None)


def check_slug(text: str, what: str) -> None:
    """Refuse, before minutes of work, a text that a manifest cannot hold as a name or a version.

    Raises:
        UsageError: with the characters that it may have.
    """
    if re.fullmatch(SLUG, text) is None:
        expected = "expected 1 to 64 of A-Z a-z 0-9 . _ + -, a letter or digit first, no full stop last"
        raise UsageError(f"{what} {text!r}: {expected}", "give another one; --name where it comes from a file's name")


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as it is written: sorted JSON, the same bytes for equal manifests.

    Raises:
        UsageError: it would be larger than `parse_manifest` reads.
    """
    fix = "shorten the labels, or the names of layers"
    return document_bytes(manifest, what="manifest", most_bytes=MAX_MANIFEST_BYTES, fix=fix)


def manifest_digest(data: bytes, manifest: Manifest) -> str:
    """Return a bundle's digest: SHA-256 over the manifest's bytes, then path and hash of each file, sorted."""
    digest = hashlib.sha256(data)
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        digest.update(f"{entry.path}\0{entry.sha256}\n".encode())
    return digest.hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that `data` holds; any bytes give a manifest or one of the errors below.

    Raises:
        IntegrityError: too large, no JSON, a key twice, an unknown key, or a value that is not allowed.
        UnsupportedError: a newer schema than this edgeq knows.
    """
    return parse_strict(
        data,
        Manifest,
        name=MANIFEST_NAME,
        version=SCHEMA_VERSION,
        most_bytes=MAX_MANIFEST_BYTES,
        again="get the bundle again, or package the model again",
    )
