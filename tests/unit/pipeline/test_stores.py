"""Shared caches on a real object store and in a folder: written once, read without trust, and never needed."""

from __future__ import annotations

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
from edgeq.deliver.ota.keys import load_keys, new_keys
from edgeq.pipeline import cache
from edgeq.pipeline.plan import BuildUnit
from edgeq.pipeline.publish import write_reports, write_result
from edgeq.pipeline.stores import Store, open_stores

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
    assert row is not None
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


def test_two_runs_on_one_key_leave_one_entry_that_is_whole(
    remote: ObjectStore, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    row = machine("a").keep()
    whole = cache._described(KEY, row, DataFacts(), {"env:EDGEQ_TEST": ""})
    name = cache._name({"env:EDGEQ_TEST": ""}, "")
    stores = [Store(remote.url) for _ in range(4)]
    threads = [threading.Thread(target=store.put, args=(KEY, name, whole, row.path, tmp_path)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.warnings for store in stores] == [[]] * 4
    assert len(remote.files()) == 2
    assert machine("b").restore(cache=(remote.url,)) is not None


def _zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("suffix", "change", "said"),
    [
        (".zip", lambda data: data[:-100], "gave back other bytes"),
        (".zip", lambda data: bytes(len(data)), "gave back other bytes"),
        (".zip", lambda _: None, "lost its bundle"),
        (".json", lambda data: data[:-100], "is damaged"),
        (".json", lambda _: b"[1]", "is damaged"),
        (".json", lambda data: data.replace(b'"key": "ab', b'"key": "ac'), "is damaged"),
    ],
)
def test_a_store_that_gives_back_other_bytes_is_a_warning_and_no_hit(
    remote: ObjectStore,
    machine: Callable[[str], Machine],
    suffix: str,
    change: Callable[[bytes], bytes | None],
    said: str,
) -> None:
    machine("a").keep(cache=(remote.url,))
    (path,) = (name for name in remote.files() if name.endswith(suffix))
    changed = change(remote.read(path))
    remote.remove(path) if changed is None else remote.write(path, changed)
    assert machine("b").restore(cache=(remote.url,)) is None
    assert said in warnings()
    made = machine("b").keep(cache=(remote.url,))
    assert any("could not" not in text for text in made.checked.warnings) or made.checked.warnings == ()


@pytest.mark.parametrize("evil", ["forged", "escape", "bomb"])
def test_an_entry_with_right_hashes_and_a_forged_bundle_is_not_used(
    remote: ObjectStore, machine: Callable[[str], Machine], evil: str
) -> None:
    """Whoever can write to the store can make both hashes fit."""
    import hashlib

    machine("a").keep(cache=(remote.url,))
    archive, entry = (next(name for name in remote.files() if name.endswith(end)) for end in (".zip", ".json"))
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
    else:
        content = _zipped(**{"../../evil" if evil == "escape" else "manifest.json": bytes(10**6)})
    sha256 = hashlib.sha256(content).hexdigest()
    remote.write(f"{archive.rpartition('/')[0]}/{sha256}.zip", content)
    remote.write(entry, json.dumps({**json.loads(remote.read(entry)), "bundle": sha256}).encode())
    other = machine("b")
    assert other.restore(cache=(remote.url,)) is None
    assert ("does not have the content" if evil == "forged" else "is not a bundle") in warnings()
    assert not list(other.folder.parent.rglob("evil"))


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
    for path in remote.files():
        remote.remove(path)
    machine("m").keep(cache=url, cache_key=tmp_path / "mallory")
    assert machine("b2").restore(cache=url, cache_trust=(public,)) is None
    (entry,) = (path for path in remote.files() if path.endswith(".json"))
    whole = json.loads(remote.read(entry))
    for path in remote.files():
        remote.remove(path)
    machine("ci").keep(cache=url, cache_key=ring.folder)
    for name, trust in (("c", public), ("d", str(tmp_path / "ci"))):
        assert machine(name).restore(cache=url, cache_trust=("0" * 64, trust)) is not None
    # a right signature under another result
    signed = json.loads(remote.read(entry))
    assert signed["signatures"] != whole["signatures"]
    signed["facts"]["data"] = {"images": "others"}
    signed["sha256"] = cache.sha256_bytes(cache.canonical_json(signed["facts"]))
    remote.write(entry, json.dumps(signed).encode())
    assert machine("e").restore(cache=url, cache_trust=(public,)) is None


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
        cache.check_shared(BuildConfig(cache=("ftpx://a",)))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(EnvironmentProblem) as raised:
        cache.check_shared(BuildConfig(cache=("gs://a",)))
    assert raised.value.fix == "pip install gcsfs"
    with pytest.raises(UsageError, match="no keys in nowhere"):
        cache.check_shared(BuildConfig(cache_trust=("nowhere",)))


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
