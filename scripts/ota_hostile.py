"""What a device must refuse though it is signed with the right keys: indexes, archives and patches, each with why."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bsdiff4
from ota_publisher import NAME, Publisher, delta_facts

from edgeq.bundle.archive import bundle_zip
from edgeq.core.files import sha256_bytes
from edgeq.deliver.ota.index import KEY, BundleFacts
from edgeq.deliver.ota.patch import _zstd_diff, pack

ZEROS = bytes(20_000_000)
Case = tuple[str, str, dict[str, tuple[bytes, Any]], dict[str, Any] | None]


def indexes(publisher: Publisher) -> Iterator[Case]:
    """Yield what an index may not say."""
    archive, facts = bundle_zip(publisher.two), publisher.facts(publisher.two)
    names = ("../evil.zip", "/etc/evil.zip", "a/b.zip", "C:evil.zip", ".hidden", "a..b.zip", "ä.zip", "a\\b.zip")
    for number, name in enumerate(names):
        yield "INDEX_BROKEN", f"name-{number}", {name: (b"x", facts)}, None
    yield "INDEX_BROKEN", "case", {"a.zip": (b"1", facts), "A.zip": (b"2", facts)}, None
    yield "INDEX_BROKEN", "twice", {"a.zip": (b"1", facts), "b.zip": (b"2", facts)}, None
    custom: dict[str, tuple[str, Any]] = {
        "no-facts": ("INDEX_BROKEN", None),
        "list": ("INDEX_BROKEN", []),
        "half": ("INDEX_BROKEN", {KEY: {"kind": "bundle", "schema_version": 1}}),
        "kind": ("INDEX_BROKEN", {KEY: {"kind": "other", "schema_version": 1}}),
        "more": ("INDEX_BROKEN", {KEY: {**facts.model_dump(mode="json"), "run": "evil"}}),
        "release": ("INDEX_BROKEN", {KEY: {**facts.model_dump(mode="json"), "release": 0}}),
        "model": ("INDEX_BROKEN", {KEY: {**facts.model_dump(mode="json"), "model": "../digits"}}),
        "newer": ("INDEX_TOO_NEW", {KEY: {"schema_version": 2}}),
    }
    for name, (reason, said) in custom.items():
        yield reason, name, {NAME: (archive, facts)}, {NAME: said}
    said_otherwise: dict[str, tuple[str, dict[str, Any]]] = {
        "abi": ("WRONG_ARCH", {"arch": "x86_64"}),
        "platform": ("WRONG_PLATFORM", {"platform": "ios"}),
        "runtime": ("RUNTIME_MISSING", {"runtime": "onnx"}),
        "exporter": ("RUNTIME_TOO_OLD", {"exported_with": "9.0.1"}),
        "bytes": ("TOO_LARGE", {"plain_bytes": 2_000_000_000}),
        "version": ("MIX_AND_MATCH", {"model_version": "3"}),
        "digest": ("MIX_AND_MATCH", {"digest": "0" * 64}),
        "plain": ("MIX_AND_MATCH", {"plain_sha256": "0" * 64}),
        "other-bundle": ("MIX_AND_MATCH", publisher.facts(publisher.one, release=2, digest="1" * 64).model_dump()),
    }
    for name, (reason, values) in said_otherwise.items():
        keep = {key: value for key, value in values.items() if key in BundleFacts.model_fields}
        yield reason, name, {NAME: (archive, facts.model_copy(update=keep))}, None


def archives(publisher: Publisher) -> Iterator[Case]:
    """Yield downloads that are not a ZIP of a bundle."""
    facts, whole = publisher.facts(publisher.two), bundle_zip(publisher.two)
    added: dict[str, tuple[str, int, bytes]] = {
        "dots": ("../evil", 0o100644, b"x"),
        "dots-turned": ("..\\evil", 0o100644, b"x"),
        "absolute": ("/etc/evil", 0o100644, b"x"),
        "drive": ("C:\\evil", 0o100644, b"x"),
        "folder": ("folder/model.pte", 0o100644, b"x"),
        "zero-byte": ("model.pte\0.txt", 0o100644, b"x"),
        "link": ("model.link", stat.S_IFLNK | 0o777, b"/etc/passwd"),
        "pipe": ("model.pipe", stat.S_IFIFO | 0o644, b"x"),
        "twice": ("model.pte", 0o100644, b"x"),
        "case": ("MODEL.PTE", 0o100644, b"x"),
        "not-listed": ("more.bin", 0o100644, b"x"),
        "bomb": ("zeros.bin", 0o100644, ZEROS),
    }
    made = {name: rebuilt(publisher.two, (entry,)) for name, entry in added.items()}
    made["many"] = rebuilt(publisher.two, tuple((f"f{i}.bin", 0o100644, b"") for i in range(40)))
    made["no-manifest"] = rebuilt(publisher.two, (), skip="manifest.json")
    made["half"] = rebuilt(publisher.two, (), skip="golden.npz")
    at = made["bomb"].rindex(b"zeros.bin") - 46 + 24
    made["bomb-that-hides"] = made["bomb"][:at] + (10).to_bytes(4, "little") + made["bomb"][at + 4 :]
    made["no-zip"] = b"not a ZIP at all"
    made["tail"] = whole + b"something follows"
    made["empty"] = b"PK\5\6" + bytes(18)
    made["encrypted"] = flagged(whole)
    made["cut"] = whole[: len(whole) // 2]
    for name, data in made.items():
        yield "ARCHIVE_REFUSED", name, {NAME: (data, facts)}, None
    large = rebuilt(publisher.two, (("model.pte", 0o100644, ZEROS),), skip="model.pte")
    yield "ENDLESS_DATA", "entry", {NAME: (large, facts.model_copy(update={"plain_bytes": 100_000_000}))}, None


def patches(publisher: Publisher) -> Iterator[Case]:
    """Yield patches that give something else than the index says."""
    base, output = pack(publisher.one), pack(publisher.two)
    whole = (bundle_zip(publisher.two), publisher.facts(publisher.two))
    zstd, longer = _zstd_diff(base, output), _zstd_diff(base, output + bytes(1000))
    bsdiff = bsdiff4.diff(base, output)
    bomb = b"BSDIFF40" + bsdiff[8:24] + (1 << 40).to_bytes(8, "little") + bsdiff[32:]
    bad: dict[str, tuple[bytes, dict[str, Any]]] = {
        "zstd-longer": (longer, {}),
        "zstd-of-another": (_zstd_diff(base, bytes(len(output))), {}),
        "zstd-garbage": (b"(\xb5/\xfd" + bytes(range(200)), {}),
        "zstd-cut": (zstd[:-20], {}),
        "bsdiff-as-zstd": (bsdiff, {}),
        "zstd-as-bsdiff": (zstd, {"algorithm": "bsdiff4"}),
        "bsdiff-garbage": (bsdiff[:40] + bytes(200), {"algorithm": "bsdiff4"}),
        "bsdiff-bomb": (bomb, {"algorithm": "bsdiff4"}),
        "bsdiff-cut": (bsdiff[: len(bsdiff) // 2], {"algorithm": "bsdiff4"}),
        "bsdiff-numbers": (bsdiff[:8] + b"\xff" * 16 + bsdiff[24:], {"algorithm": "bsdiff4"}),
        "output-bytes": (zstd, {"output_bytes": len(output) + 1}),
        "no-bundle": no_bundle(base),
    }
    for name, (data, values) in bad.items():
        facts = whole[1]
        if "output_sha256" in values:
            facts = facts.model_copy(update={"plain_sha256": values["output_sha256"]})
        files = {NAME: (whole[0], facts), "digits.patch": (data, delta_facts(publisher, **values))}
        yield "PATCH_REFUSED", name, files, None


def no_bundle(base: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return a patch whose output is what the index says, but no bundle's plain form."""
    output = b"no plain form" * 100
    return _zstd_diff(base, output), {"output_sha256": sha256_bytes(output), "output_bytes": len(output)}


def rebuilt(bundle: Path, added: tuple[tuple[str, int, bytes], ...], skip: str = "") -> bytes:
    """Return a bundle's ZIP with entries added (name, mode, content), and one left out."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(bundle.iterdir()):
            if path.name != skip:
                archive.write(path, path.name)
        for name, mode, data in added:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # ZipInfo's own would mend it
            info.external_attr = mode << 16
            archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def flagged(data: bytes) -> bytes:
    """Return a ZIP whose last entry says that it is encrypted."""
    at = data.rindex(b"PK\1\2") + 8
    return data[:at] + bytes([data[at] | 1]) + data[at + 1 :]
