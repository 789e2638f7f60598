"""Write update channels for the Android store's tests, as edgeq signs them: FOLDER.

`good/NAME` are of one publisher: `first` (release 1 of a golden bundle), `second` (release 2 with a patch), `zstd` and
`bsdiff4` (the same by that algorithm), `withdrawn`, `again` (`second`, signed 40 days later), `rotated` (every role has
new keys), and `addressed` (for the device tester-7 alone). In `threshold/` two keys must sign; in `threshold/one` one
did. `hostile/REASON/NAME` are those that a device with release 1 must refuse for that reason of `Refusal.kt`: all but
those of thieves are signed with the right keys. All are signed at NOW.
"""

from __future__ import annotations

import datetime
import io
import json
import shutil
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import bsdiff4

from edgeq._io import sha256_bytes
from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.deliver.ota.channel import Channel, open_channel, publish
from edgeq.deliver.ota.entries import Terms, shipped, target_file
from edgeq.deliver.ota.facts import KEY, BundleFacts, DeltaFacts, bundle_facts
from edgeq.deliver.ota.keys import ROLES, forget_retired, load_keys, new_keys, rotated
from edgeq.deliver.ota.patch import _zstd_diff
from edgeq.deliver.ota.plain import pack
from edgeq.deliver.ota.release import add_release, bases, prepare, refresh, withdraw

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
GOLDEN = Path(__file__).parents[1] / "tests/golden/0.1.0/digits/android-arm64-xnnpack"
NAME = "digits.android-arm64-xnnpack.2.zip"
ZEROS = bytes(20_000_000)

Sign = Callable[[Path], None]


class Publisher:
    """One publisher with his keys and two bundles."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        self.work.mkdir(parents=True)
        self.keys = root / "keys"
        new_keys(self.keys, counts={}, places={})
        self.one = version(self.work, "1")
        self.two = version(self.work, "2")

    def release(self, channel: Path, bundle: Path, **terms: Any) -> None:
        """Release a bundle as `edgeq ota release` does."""
        before = open_channel(channel)
        manifest = read_bundle(bundle).manifest
        known = shipped(before, manifest.model.name, manifest.target.name)
        item = prepare(bundle, bases(before, known))
        add_release(channel, before, load_keys(self.keys), [item], Terms(now=NOW, **terms))

    def facts(self, bundle: Path, **values: Any) -> BundleFacts:
        """Return what the index should say of a bundle as release 2, or what it says instead."""
        read, plain = read_bundle(bundle), pack(bundle)
        facts = bundle_facts(
            read.manifest, release=2, digest=read.digest, plain_sha256=sha256_bytes(plain), plain_bytes=len(plain)
        )
        return facts.model_copy(update=values)

    def sign(
        self, channel: Path, files: Mapping[str, tuple[bytes, Any]], custom: Mapping[str, Any] | None = None
    ) -> None:
        """Sign an index with entries that edgeq itself would never make; names that are paths get no file."""
        before = cast(Channel, open_channel(channel))
        targets = dict(before.targets.signed.targets)
        targets |= {name: target_file(name, data, facts) for name, (data, facts) in files.items()}
        for name, facts in (custom or {}).items():
            targets[name].unrecognized_fields["custom"] = facts
        data = {name: content for name, (content, _) in files.items() if "/" not in name}
        try:
            publish(channel, before, load_keys(self.keys), targets=targets, files=data, now=NOW)
            open_channel(channel).index  # type: ignore[union-attr]  # noqa: B018
        except Exception as err:  # edgeq refuses to read what it was made to sign here
            print(f"{channel.name}: {err}", file=sys.stderr)


def version(work: Path, name: str) -> Path:
    """Return the golden bundle as another version of the model, whose artifact differs in a few bytes."""
    folder = work / f"bundle-{name}"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("report.*"))
    if name == "1":
        return folder
    data = bytearray((folder / "model.pte").read_bytes())
    for at in range(4000, len(data), 5000):
        data[at] ^= 1
    manifest = (folder / "manifest.json").read_text()
    old = sha256_bytes((folder / "model.pte").read_bytes())
    manifest = manifest.replace('"version": "1"', f'"version": "{name}"').replace(old, sha256_bytes(bytes(data)))
    (folder / "model.pte").write_bytes(data)
    (folder / "manifest.json").write_text(manifest)
    return folder


def good(publisher: Publisher, folder: Path) -> None:
    """Write the channels that a device follows."""
    publisher.release(folder / "first", publisher.one)
    shutil.copytree(folder / "first", folder / "second")
    publisher.release(folder / "second", publisher.two)
    for name in ("withdrawn", "again"):
        shutil.copytree(folder / "second", folder / name)
    withdraw(folder / "withdrawn", load_keys(publisher.keys), 2, Terms(now=NOW))
    refresh(folder / "again", load_keys(publisher.keys), Terms(now=NOW + datetime.timedelta(days=40)))
    plain = pack(publisher.one), pack(publisher.two)
    whole = bundle_zip(publisher.two), publisher.facts(publisher.two)
    for name, patch in (("zstd", _zstd_diff(*plain)), ("bsdiff4", bsdiff4.diff(*plain))):
        shutil.copytree(folder / "first", folder / name)
        publisher.sign(folder / name, {NAME: whole, "digits.patch": (patch, delta_facts(publisher, algorithm=name))})
    publisher.release(folder / "addressed", publisher.one, devices=("tester-7",))


def delta_facts(publisher: Publisher, **values: Any) -> DeltaFacts:
    """Return what the index should say of the patch, or what it says instead."""
    base, output = pack(publisher.one), pack(publisher.two)
    facts = DeltaFacts(
        model="digits",
        target="android-arm64-xnnpack",
        release=2,
        algorithm="zstd",
        base_sha256=sha256_bytes(base),
        output_sha256=sha256_bytes(output),
        output_bytes=len(output),
    )
    return facts.model_copy(update=values)


def rotations(publisher: Publisher, folder: Path) -> None:
    """Write `good/rotated`, and what a thief of the old keys makes of it."""
    channel, stolen = folder / "good/rotated", publisher.work / "stolen"
    shutil.copytree(folder / "good/first", channel)
    shutil.copytree(publisher.keys, stolen)
    thief = Publisher(publisher.work / "thief")
    shutil.rmtree(thief.keys)
    shutil.copytree(stolen, thief.keys)
    for role in ROLES:
        ring = rotated(load_keys(publisher.keys), role)
        refresh(channel, ring, Terms(now=NOW))
        forget_retired(ring)
    publisher.release(channel, publisher.two)
    # he signs a newer index with the keys that were good once, and shows the newest root beside it
    forged = folder / "hostile/WRONG_KEY/revoked"
    shutil.copytree(folder / "good/first", forged)
    for _ in range(8):
        refresh(forged, load_keys(thief.keys), Terms(now=NOW))
    for root in (channel / "metadata").glob("*.root.json"):
        shutil.copyfile(root, forged / "metadata" / root.name)
    # and somebody with keys of his own
    other = Publisher(publisher.work / "other")
    strange = folder / "hostile/WRONG_KEY/strange"
    shutil.copytree(folder / "good/first", strange)
    shutil.rmtree(strange / "metadata")
    other.release(strange, other.one)
    other.release(strange, other.two)


def hostile(publisher: Publisher, folder: Path) -> None:
    """Write the channels that were signed with the right keys, and must be refused all the same."""
    for reason, name, files, custom in (*indexes(publisher), *archives(publisher), *patches(publisher)):
        channel = folder / reason / name
        shutil.copytree(folder.parent / "good/first", channel)
        publisher.sign(channel, files, custom)


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
    """Yield downloads that are no bundle's ZIP."""
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


def threshold(publisher: Publisher, folder: Path) -> None:
    """Write a channel whose every role needs two signatures, and one with a signature taken away."""
    shutil.rmtree(publisher.keys)
    new_keys(publisher.keys, counts=dict.fromkeys(ROLES, (2, 2)), places={})
    publisher.release(folder / "both", publisher.one)
    shutil.copytree(folder / "both", folder / "one")
    path = folder / "one/metadata/timestamp.json"
    signed = json.loads(path.read_text())
    signed["signatures"].pop()
    path.write_text(json.dumps(signed, indent=1, separators=(",", ": "), sort_keys=True))


def main(folder: Path) -> None:
    """Write all channels."""
    publisher = Publisher(folder)
    good(publisher, folder / "good")
    hostile(publisher, folder / "hostile")
    rotations(publisher, folder)
    threshold(Publisher(publisher.work / "two"), folder / "threshold")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
