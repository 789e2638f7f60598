"""What the signed index records for each file, in the `custom` field of TUF's targets: the contract with every client.

A target's name is `<model>.<target>.<release>.zip`, `….<release>.from-<base>.patch` or `….<release>.cdx.json`; it lies
at `targets/<sha256>.<name>`. Clients choose by the facts below, never by a name, and derive no path from either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgeq.core.errors import IntegrityError, UnsupportedError
from edgeq.core.manifest import Count, Manifest, Sha256, Slug

FACTS_VERSION = 1

KEY = "edgeq"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,180}[A-Za-z0-9])")

Release = Annotated[int, Field(ge=1, le=2**31 - 1)]

DeviceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    model: Slug
    target: Slug
    release: Release = Field(description="counts up in a channel, independent of the models' own versions")


class BundleFacts(_Strict):
    """A full download."""

    kind: Literal["bundle"] = "bundle"
    model_version: Slug
    platform: Slug
    arch: Slug = Field(description="the ABI")
    runtime: Slug
    exported_with: str = Field(description="the runtime version that wrote the artifact; older ones are refused")
    runtimes: tuple[str, ...] = Field(description="the runtime versions in the field that it was released for")
    digest: Sha256 = Field(description="the bundle's")
    plain_sha256: Sha256 = Field(description="of the bundle's plain form, which patches start from and lead to")
    plain_bytes: Count
    withdrawn: bool = False
    devices: tuple[DeviceId, ...] = Field(
        default=(), description=("ids of the only devices that it is for; empty for all")
    )


class DeltaFacts(_Strict):
    """A patch between two plain forms."""

    kind: Literal["delta"] = "delta"
    algorithm: Literal["zstd", "bsdiff4"]
    base_sha256: Sha256
    output_sha256: Sha256
    output_bytes: Count


class BomFacts(_Strict):
    """A bill of materials (CycloneDX JSON)."""

    kind: Literal["bom"] = "bom"


Facts = Annotated[BundleFacts | DeltaFacts | BomFacts, Field(discriminator="kind")]

_FACTS: TypeAdapter[BundleFacts | DeltaFacts | BomFacts] = TypeAdapter(Facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a channel, as the signed index lists it."""

    name: str
    sha256: str
    size_bytes: int
    facts: BundleFacts | DeltaFacts | BomFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEntry:
    """A full download in the index."""

    file: Entry
    facts: BundleFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaEntry:
    """A patch in the index."""

    file: Entry
    facts: DeltaFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All files of a channel, their facts parsed."""

    entries: tuple[Entry, ...]

    @property
    def bundles(self) -> tuple[BundleEntry, ...]:
        """The full downloads, the newest release first."""
        found = [BundleEntry(file=one, facts=one.facts) for one in self.entries if isinstance(one.facts, BundleFacts)]
        return tuple(sorted(found, key=lambda entry: -entry.facts.release))

    @property
    def deltas(self) -> tuple[DeltaEntry, ...]:
        """The patches."""
        return tuple(DeltaEntry(file=one, facts=one.facts) for one in self.entries if isinstance(one.facts, DeltaFacts))


def parse_index(targets: Mapping[str, Any]) -> Index:
    """Return the index that TUF's targets hold, by name.

    Args:
        targets: what python-tuf verified: an object with `length`, `hashes` and `custom` for each name.

    Raises:
        IntegrityError: a name that would become a path, two names that differ only in case, or invalid facts.
        UnsupportedError: facts of a newer edgeq.
    """
    seen: set[str] = set()
    entries = []
    for name, target in sorted(targets.items()):
        if not _NAME.fullmatch(name) or ".." in name:
            raise _broken(f"the name {name[:80]!r} would become a path")
        if name.lower() in seen:
            raise _broken(f"two names differ only in case: {name!r}")
        seen.add(name.lower())
        sha256 = target.hashes.get("sha256", "")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise _broken(f"{name} has no sha256")
        custom = target.custom or {}
        facts = custom.get(KEY) if isinstance(custom, dict) else None
        if not isinstance(facts, dict):
            raise _broken(f"{name} has no edgeq facts")
        version = facts.get("schema_version")
        if type(version) is int and version > FACTS_VERSION:
            what = f"the channel's index has facts of version {version}, this client knows {FACTS_VERSION}"
            raise UnsupportedError(what, "update the app, or edgeq")
        try:
            # strict validation takes no list for a tuple
            parsed = _FACTS.validate_python(
                {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}, strict=True
            )
        except ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _broken(f"{name}: {where}: {first['msg']}") from err
        entries.append(Entry(name=name, sha256=sha256, size_bytes=target.length, facts=parsed))
    numbers = [(entry.facts.model, entry.facts.target, entry.facts.release, entry.facts.kind) for entry in entries]
    for number in set(numbers):
        if number[-1] == "bundle" and numbers.count(number) > 1:
            raise _broken(f"release {number[2]} of {number[0]} for {number[1]} is listed twice")
    return Index(entries=tuple(entries))


def _broken(why: str) -> IntegrityError:
    return IntegrityError(
        f"the channel's index is refused: {why[:300]}", "do not use it; report this to the channel's operator"
    )


def bundle_facts(manifest: Manifest, *, release: int, digest: str, plain_sha256: str, plain_bytes: int) -> BundleFacts:
    """Return a bundle's index facts from its manifest; the caller adds field runtimes and devices."""
    return BundleFacts(
        model=manifest.model.name,
        target=manifest.target.name,
        release=release,
        model_version=manifest.model.version,
        platform=manifest.target.platform,
        arch=manifest.target.arch,
        runtime=manifest.target.runtime,
        exported_with=manifest.runtime.exported_with,
        runtimes=(manifest.runtime.oldest_in_field,),
        digest=digest,
        plain_sha256=plain_sha256,
        plain_bytes=plain_bytes,
    )


def disagreement(facts: BundleFacts, manifest: Manifest, digest: str) -> str | None:
    """Return how a bundle differs from its index entry, or None."""
    pairs = (
        ("model", facts.model, manifest.model.name),
        ("target", facts.target, manifest.target.name),
        ("ABI", facts.arch, manifest.target.arch),
        ("platform", facts.platform, manifest.target.platform),
        ("runtime", facts.runtime, manifest.target.runtime),
        ("runtime version", facts.exported_with, manifest.runtime.exported_with),
        ("model version", facts.model_version, manifest.model.version),
        ("digest", facts.digest, digest),
    )
    return next((f"{what} {came}, the index says {said}" for what, said, came in pairs if said != came), None)
