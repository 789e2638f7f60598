"""Write update channels for the Android store's tests, as edgeq signs them: FOLDER.

`good/NAME` are of one publisher: `first` (release 1 of a golden bundle), `second` (release 2 with a patch), `zstd` and
`bsdiff4` (the same by that algorithm), `withdrawn`, `again` (`second`, signed 40 days later), `rotated` (every role has
new keys), and `addressed` (for the device tester-7 alone). In `threshold/` two keys must sign; in `threshold/one` one
did. `hostile/REASON/NAME` are those that a device with release 1 must refuse for that reason of `Refusal.kt`: all but
those of thieves are signed with the right keys. All are signed at NOW.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from pathlib import Path

import bsdiff4
from ota_hostile import archives, indexes, patches
from ota_publisher import NAME, NOW, Publisher, delta_facts

from edgeq.bundle.archive import bundle_zip
from edgeq.deliver.ota.keys import ROLES, forget_retired, load_keys, new_keys, rotated
from edgeq.deliver.ota.patch import _zstd_diff, pack
from edgeq.deliver.ota.release import Terms, refresh, withdraw


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
    """Write the channels that were signed with the right keys, and must still be refused."""
    for reason, name, files, custom in (*indexes(publisher), *archives(publisher), *patches(publisher)):
        channel = folder / reason / name
        shutil.copytree(folder.parent / "good/first", channel)
        publisher.sign(channel, files, custom)


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
