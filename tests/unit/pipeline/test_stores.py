"""Shared caches on a real object store and in a folder: written once, read without trust, and never needed."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore, object_store

from edgeq.bundle.reader import read_bundle
from edgeq.core.config import BuildConfig, Job
from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import DataFacts, PackageResult
from edgeq.deliver.ota.keys import NO_KEY, load_keys, new_keys
from edgeq.pipeline import cache
from edgeq.pipeline.plan import BuildUnit
from edgeq.pipeline.publish import write_reports, write_result
from edgeq.pipeline.stores import Store, check_shared, open_stores

KEY = "ab" * 32


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def remote(server: ObjectStore, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    name = re.sub(r"\W+", "-", request.node.name)
    yield dataclasses.replace(server, url=f"s3://team/{name}")
    open_stores.cache_clear()


class Machine:
    """A machine with a cache of its own, which keeps and restores one result."""

    def __init__(self, item: BundleInput, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch, self._item = folder, patch, item
        self.job = Job(source="digits", targets=(item.target,), name="digits")
        self.unit = BuildUnit(target=item.target, scheme="static-int8", key=KEY)

    def enter(self, **build: Any) -> Job:
        open_stores.cache_clear()  # as in a new process
        self._patch.setenv("EDGEQ_CACHE_DIR", str(self.folder / "cache"))
        return dataclasses.replace(self.job, build=BuildConfig(**build))

    def keep(self, **build: Any) -> PackageResult:
        job = self.enter(**build)
        self.folder.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=self.folder)) / "bundle"
        made = write_result(self.unit, self._item.artifact, self._item.inputs, job, place)
        row = write_reports(made, DataFacts())
        return cache.stored({KEY: (row, DataFacts())}, {"env:EDGEQ_TEST": ""}, job.build)[KEY][0]

    def restore(self, **build: Any) -> PackageResult | None:
        job = self.enter(**build)
        self.folder.mkdir(exist_ok=True)
        found = cache.restore([self.unit], Path(tempfile.mkdtemp(dir=self.folder)), job)
        return found[KEY][0] if found else None


@pytest.fixture
def machine(item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    monkeypatch.delenv("EDGEQ_TEST", raising=False)
    return lambda name: Machine(item, tmp_path / name, monkeypatch)


def warnings() -> str:
    """Return what the stores of this process warned of, by all that were opened since the last `enter`."""
    return "\n".join(text for store in _opened for text in store.warnings)


_opened: list[Store] = []


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    _opened.clear()
    start = Store.__init__

    def noted(self: Store, url: str) -> None:
        start(self, url)
        _opened.append(self)

    monkeypatch.setattr(Store, "__init__", noted)


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_what_one_machine_keeps_another_restores(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path, kind: str
) -> None:
    url = remote.url if kind == "s3" else f"file://{tmp_path}/shared"
    kept = machine("a").keep(cache=("local", url))
    other = machine("b")
    assert other.restore() is None
    row = other.restore(cache=(url,))
    assert row is not None, warnings()
    assert (row.digest, row.cached) == (kept.digest, True)
    assert read_bundle(row.path).digest == kept.digest
    assert other.restore() is not None, "it is in the local cache now"
    assert warnings() == ""
    if kind == "file":
        names = sorted(path.suffix for path in (tmp_path / "shared").rglob("*") if path.is_file())
        assert names == [".json", ".zip"], "no temporary file is left"


def test_another_state_of_what_the_code_looked_at_is_no_hit(
    remote: ObjectStore, machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a").keep(cache=(remote.url,))
    monkeypatch.setenv("EDGEQ_TEST", "other")
    assert machine("b").restore(cache=(remote.url,)) is None
    assert warnings() == ""


def test_an_entry_is_written_once_and_a_pull_request_writes_nothing(
    remote: ObjectStore, machine: Callable[[str], Machine]
) -> None:
    machine("a").keep(cache=(remote.url,), cache_read_only=True)
    assert remote.files() == []
    machine("a").keep(cache=(remote.url,))
    first = remote.files()
    assert [name.rpartition(".")[2] for name in first] in (["json", "zip"], ["zip", "json"])
    machine("c").keep(cache=(remote.url,))
    assert remote.files() == first


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_two_runs_on_one_key_leave_one_entry_that_is_whole(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path, kind: str
) -> None:
    row = machine("a").keep()
    url = remote.url if kind == "s3" else f"file://{tmp_path}/shared"
    stores = [Store(url) for _ in range(4)]
    looked_at = {"env:EDGEQ_TEST": ""}
    of_each = [(store, KEY, row, DataFacts(), looked_at, BuildConfig()) for store in stores]
    threads = [threading.Thread(target=cache._share, args=args) for args in of_each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.warnings for store in stores] == [[]] * 4
    found = remote.files() if kind == "s3" else [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert len(found) == 2
    assert machine("b").restore(cache=(url,)) is not None


def _zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("kind", "suffix", "change", "said"),
    [
        ("s3", ".zip", lambda data: data + b"more", "gave back other bytes"),
        ("s3", ".zip", lambda data: bytes(len(data)), "gave back other bytes"),
        ("s3", ".zip", lambda _: None, "lost its bundle"),
        ("s3", ".json", lambda data: data[:-100], "is damaged"),
        ("s3", ".json", lambda _: b"[1]", "is damaged"),
        ("s3", ".json", lambda _: b"", ""),
        ("s3", ".json", lambda data: data.replace(b'"key": "ab', b'"key": "ac'), "is damaged"),
        ("file", ".zip", lambda data: data[:-100], "gave back other bytes"),
        ("file", ".json", lambda data: data[:-100], "is damaged"),
    ],
)
def test_a_store_that_gives_back_other_bytes_is_a_warning_no_hit_and_mended_by_the_next_that_builds(
    remote: ObjectStore,
    machine: Callable[[str], Machine],
    tmp_path: Path,
    kind: str,
    suffix: str,
    change: Callable[[bytes], bytes | None],
    said: str,
) -> None:
    url = remote.url if kind == "s3" else f"file://{tmp_path}/shared"
    machine("a").keep(cache=(url,))
    if kind == "s3":
        (path,) = (name for name in remote.files() if name.endswith(suffix))
        changed = change(remote.read(path))
        remote.remove(path) if changed is None else remote.write(path, changed)
    else:
        (place,) = (tmp_path / "shared").rglob(f"*{suffix}")
        changed = change(place.read_bytes())
        place.unlink() if changed is None else place.write_bytes(changed)
    assert machine("b").restore(cache=(url,)) is None
    assert said in warnings()
    made = machine("b").keep(cache=(url,))
    assert not any("could not" in text for text in made.checked.warnings)
    mended = machine("c").restore(cache=(url,))
    assert mended is not None
    assert mended.digest == made.digest


def _forged(remote: ObjectStore, content: bytes, **facts: Any) -> None:
    """Put a ZIP in the place of an entry's, with hashes that fit: whoever can write to the store can."""
    (entry,) = (name for name in remote.files() if name.endswith(".json"))
    whole = json.loads(remote.read(entry))
    whole["facts"] |= {"bundle": cache.sha256_bytes(content), "bundle_bytes": len(content), **facts}
    whole["sha256"] = cache.sha256_bytes(cache.canonical_json(whole["facts"]))
    remote.write(f"{entry.rpartition('/')[0]}/{whole['facts']['bundle']}.zip", content)
    remote.write(entry, json.dumps(whole).encode())


def _overlapping() -> bytes:
    """Return a ZIP with many names for the same bytes: small, and it unpacks to a hundred times its size."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.bin", bytes(10**5))
        first = archive.filelist[0]
        for number in range(100):
            other = copy.copy(first)
            other.filename = f"{number}.bin"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
        archive._didModify = True
    return packed.getvalue()


@pytest.mark.parametrize("evil", ["forged", "escape", "bomb", "overlap", "directory"])
def test_an_entry_with_right_hashes_and_a_forged_bundle_is_not_used(
    remote: ObjectStore, machine: Callable[[str], Machine], evil: str
) -> None:
    machine("a").keep(cache=(remote.url,))
    (archive,) = (name for name in remote.files() if name.endswith(".zip"))
    if evil == "forged":
        packed = io.BytesIO(remote.read(archive))
        with zipfile.ZipFile(packed) as before:
            files = {info.filename: before.read(info) for info in before.infolist()}
        files["golden.npz"] = files["golden.npz"].replace(b"\0", b"\1", 1)
        forged = io.BytesIO()
        with zipfile.ZipFile(forged, "w") as after:
            for name, data in files.items():
                after.writestr(name, data)
        content = forged.getvalue()
    elif evil == "overlap":
        content = _overlapping()
    elif evil == "directory":
        forged = io.BytesIO()
        with zipfile.ZipFile(forged, "w") as after:
            for number in range(10_000):
                after.writestr(f"{number:0100}", b"")
        content = forged.getvalue()
    else:
        content = _zipped(**{"../../evil" if evil == "escape" else "manifest.json": bytes(10**6)})
    _forged(remote, content)
    other = machine("b")
    assert other.restore(cache=(remote.url,)) is None
    assert ("does not have the content" if evil == "forged" else "is not a bundle") in warnings()
    assert not list(other.folder.parent.rglob("evil"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"bundle_bytes": 10**15}, "has no room for an entry of"),
        ({"bundle_bytes": 10}, "gave back other bytes"),
        ({"bundle_bytes": "10"}, "is damaged"),
        ({"bundle": "../../../other/secret"}, "is damaged"),
    ],
)
def test_no_more_of_a_bundle_is_read_than_its_entry_states_and_the_disk_has(
    remote: ObjectStore, machine: Callable[[str], Machine], facts: dict[str, Any], said: str
) -> None:
    machine("a").keep(cache=(remote.url,))
    _forged(remote, b"x" * 10**6, **facts)
    assert machine("b").restore(cache=(remote.url,)) is None
    assert said in warnings()


def test_a_store_that_sends_more_than_it_says_is_stopped(
    remote: ObjectStore, machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    machine("a").keep(cache=(remote.url,))
    content = b"x" * 10**6
    _forged(remote, content, bundle_bytes=10**5)
    monkeypatch.setattr(s3fs.S3FileSystem, "size", lambda *_: 10**5)
    other = machine("b")
    assert other.restore(cache=(remote.url,)) is None
    assert "gave back other bytes" in warnings()


def test_entries_are_read_in_batches_the_newest_ones_only(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, machine: Callable[[str], Machine]
) -> None:
    from edgeq.pipeline import stores

    folder = f"{remote.url.removeprefix('s3://')}/v1/{KEY}"
    for number in range(9):
        remote.write(f"{folder}/{number}.json", b"%d" % number * 100)
    remote.write(f"{folder}/large.json", b"9" * 2000)
    monkeypatch.setattr(stores, "_BATCH_BYTES", 250)
    monkeypatch.setattr(stores, "_MOST_ENTRIES", 8)
    monkeypatch.setattr(stores, "_MOST_ENTRY_BYTES", 1000)
    names = [name for name, _ in Store(remote.url).entries(KEY)]
    assert len(names) in (7, 8)  # the large one is among the newest, and left out
    machine("a").keep(cache=(remote.url,))
    assert machine("b").restore(cache=(remote.url,)) is not None or "is damaged" in warnings()


def test_only_entries_that_a_trusted_key_signed_are_used(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    ring = new_keys(tmp_path / "ci", counts={}, places={})
    new_keys(tmp_path / "mallory", counts={}, places={})
    public = load_keys(tmp_path / "ci").public("targets")[0].to_dict()["keyval"]["public"]
    url = (remote.url,)
    machine("unsigned").keep(cache=url)
    for trust in (str(tmp_path / "ci"), public):
        assert machine(f"b-{len(trust)}").restore(cache=url, cache_trust=(trust,)) is None
        assert "not signed by a key of --cache-trust" in warnings()
    # one that was fetched before the key was asked for does not pass either
    late = machine("late")
    assert late.restore(cache=url) is not None
    assert late.restore(cache=url, cache_trust=(public,)) is None
    # CI replaces what it may not use
    machine("ci").keep(cache=url, cache_key=ring.folder, cache_trust=(public,))
    for name, trust in (("c", public), ("d", str(tmp_path / "ci"))):
        assert machine(name).restore(cache=url, cache_trust=("0" * 64, trust)) is not None
    assert machine("nobody").restore(cache=url, cache_trust=(NO_KEY,)) is None
    # and another's signature is none
    (entry,) = (path for path in remote.files() if path.endswith(".json"))
    signed = json.loads(remote.read(entry))
    for path in remote.files():
        remote.remove(path)
    machine("m").keep(cache=url, cache_key=tmp_path / "mallory")
    assert machine("b2").restore(cache=url, cache_trust=(public,)) is None
    # a right signature under another result, or another bundle
    machine("ci2").keep(cache=url, cache_key=ring.folder, cache_trust=(public,))
    for change in ({"data": {"images": "others"}}, {"bundle": "ab" * 32}):
        forged = {**signed, "facts": {**signed["facts"], **change}}
        forged["sha256"] = cache.sha256_bytes(cache.canonical_json(forged["facts"]))
        remote.write(entry, json.dumps(forged).encode())
        assert machine("e").restore(cache=url, cache_trust=(public,)) is None


def test_a_folder_of_keys_counts_with_its_threshold_and_a_key_named_twice_once(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    ring = new_keys(tmp_path / "two", counts={"targets": (2, 3)}, places={})
    url, trust = (remote.url,), (str(ring.folder),)
    machine("a").keep(cache=url, cache_key=ring.folder)
    assert machine("b").restore(cache=url, cache_trust=trust) is not None
    (entry,) = (path for path in remote.files() if path.endswith(".json"))
    whole = json.loads(remote.read(entry))
    first, second, _ = whole["signatures"]
    several = (
        ([first, second], True),
        ([first], False),
        ([first, first], False),
        ([first, {**first, "keyid": second["keyid"]}], False),
        ([first, "no dict", {"sig": 1}], False),
        ("no list", False),
    )
    for i, (signatures, is_used) in enumerate(several):
        remote.write(entry, json.dumps({**whole, "signatures": signatures}).encode())
        assert (machine(f"c{i}").restore(cache=url, cache_trust=trust) is not None) == is_used


def test_what_an_entry_names_is_not_looked_at_before_its_signature(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state is a hash of a file, a folder's names or a variable: nobody unknown may choose which."""
    new_keys(tmp_path / "ci", counts={}, places={})
    machine("a").keep(cache=(remote.url,))
    other = machine("b")
    assert other.restore(cache=(remote.url,)) is not None  # unsigned, now in the local cache too
    asked: list[str] = []
    monkeypatch.setattr(cache, "current_state", lambda name: asked.append(name) or "")
    assert other.restore(cache=(remote.url,), cache_trust=(str(tmp_path / "ci"),)) is None
    assert asked == []
    assert other.restore(cache=(remote.url,)) is not None
    assert asked == ["env:EDGEQ_TEST"]


def test_a_store_without_rights_is_a_warning(remote: ObjectStore, machine: Callable[[str], Machine]) -> None:
    machine("a").keep(cache=(remote.url,))
    with remote.without_rights():
        other = machine("b")
        assert other.restore(cache=(remote.url,)) is None
        assert "could not be read: PermissionError" in warnings()
        made = other.keep(cache=(remote.url,))
        assert any("could not be written to: PermissionError" in text for text in made.checked.warnings)
        with pytest.raises(EnvironmentProblem, match="failed: PermissionError"):
            cache.cache_info(remote.url)
    assert other.restore() is not None, "it is in the local cache"


def test_a_store_that_is_not_there_costs_seconds_and_a_warning(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-the-tests")
    start = time.monotonic()
    assert machine("a").restore(cache=("s3://team/x",)) is None
    assert "could not be read" in warnings()
    made = machine("a").keep(cache=("s3://team/x",))
    assert any("s3://team/x could not be written to" in text for text in made.checked.warnings)
    assert time.monotonic() - start < 30


def test_a_local_cache_that_cannot_be_written_leaves_the_shared_one(
    remote: ObjectStore, machine: Callable[[str], Machine]
) -> None:
    """As in a container whose HOME is read-only."""
    blocked = machine("a")
    blocked.folder.mkdir()
    (blocked.folder / "cache").write_text("in the way")
    assert any("not kept in the cache" in text for text in blocked.keep(cache=(remote.url,)).checked.warnings)
    assert blocked.restore(cache=(remote.url,)) is not None


def test_an_address_that_cannot_be_used_ends_the_run_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--cache ftpx://a: Protocol not known"):
        check_shared(BuildConfig(cache=("ftpx://a",)))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(EnvironmentProblem) as raised:
        check_shared(BuildConfig(cache=("gs://a",)))
    assert raised.value.fix == "pip install gcsfs"
    with pytest.raises(UsageError, match="no keys in nowhere"):
        check_shared(BuildConfig(cache_trust=("nowhere",)))


def test_old_and_torn_entries_go_from_both_levels(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    import os

    one = machine("a")
    one.keep(cache=(remote.url,))
    (entry,) = (one.folder / "cache").glob("cells/*/*/entry.json")
    remote.write(f"{remote.url.removeprefix('s3://')}/v1/cd/orphan.zip", b"half")
    assert cache.cache_info(remote.url).entries == cache.cache_info().entries == 1
    for level in ("local", remote.url):
        assert cache.prune_cache(level, older_than_s=3600, max_size_bytes=10**9) == (0, 0)
    os.utime(entry, (time.time() - 7200,) * 2)
    assert one.restore() is not None  # used: it stays
    assert cache.prune_cache("local", older_than_s=3600, max_size_bytes=None)[0] == 0
    os.utime(entry, (time.time() - 7200,) * 2)
    count, size = cache.prune_cache("local", older_than_s=3600, max_size_bytes=None)
    assert (count, size > 0, entry.exists()) == (1, True, False)
    assert cache.prune_cache(remote.url, older_than_s=None, max_size_bytes=0)[0] == 2
    assert remote.files() == []
    shared = f"file://{tmp_path}/shared"
    machine("c").keep(cache=(shared,))
    assert cache.cache_info(shared).entries == cache.clear_cache(shared) == 1
    assert cache.cache_info(shared).entries == 0
    shutil.rmtree(tmp_path / "shared")
    assert cache.clear_cache(shared) == 0
