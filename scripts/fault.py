"""Long fault tests of updates: kills, disk errors, flipped bits, hostile archives, mutated files. Counts, no times.

    scripts/fault kills --count 1000        kill -9 at every call that changes a file, then at random ones
    scripts/fault errors                    ENOSPC, EIO, EACCES and short writes at each such call
    scripts/fault bits --count 10000        single-bit flips over all signed files; 1,000 intact runs; wrong keys
    scripts/fault archives --count 10000    hostile ZIPs
    scripts/fault manifests|indexes|states --count 10000   mutated JSON
    scripts/fault patches --count 5000      mutated patches, and 1,000 round trips
    scripts/fault artifacts FILE --count 5000   a mutated .pte or .ptl in the runtime's own process
    scripts/fault builds --count 20         one release under other hash seeds, time zones and umasks

Each operation runs in a forked child, with a shim (scripts/fault_shim.c, LD_PRELOAD) that counts its system calls.
Exit status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
KILL, SHORT = -1, -2
FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES, "short write": SHORT}


def main() -> None:
    """Run one test, and print what it counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=sorted(TESTS))
    parser.add_argument("file", nargs="?", type=Path, help="for `artifacts`")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="an operation of `kills` and `errors`")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.test in ("kills", "errors"):
        _preload()
    with tempfile.TemporaryDirectory(prefix="edgeq-fault-") as name:
        random.seed(options.seed)
        bad = TESTS[options.test](Path(name), options)
        shutil.rmtree(_PACKAGED, ignore_errors=True)
    print("all as it should be" if not bad else f"NOT as it should be: {bad}", flush=True)
    sys.exit(bool(bad))


def _preload() -> None:
    """Start this script again with the shim in front of libc."""
    if "EDGEQ_FAULT_SHIM" in os.environ:
        return
    shim = Path(tempfile.mkdtemp(prefix="edgeq-shim-")) / "fault_shim.so"
    source = ROOT / "scripts" / "fault_shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(source), "-ldl"], check=True)
    env = {**os.environ, "LD_PRELOAD": str(shim), "EDGEQ_FAULT_SHIM": str(shim)}
    os.execve(sys.executable, [sys.executable, *sys.argv], env)  # noqa: S606  # no shell is wanted


# --- bundles, a channel, a device ---


def bundle(folder: Path, version: str, *, size: int = 20_000, changes: int = 200) -> Path:
    """Write a bundle around invented weights; the golden self-test is not run on it."""
    source = ROOT / "tests" / "golden" / "0.1.0" / "digits" / "android-arm64-xnnpack"
    rng = random.Random(7)  # no secret
    weights = bytearray(int(rng.gauss(0, 20)) & 255 for _ in range(size))
    rng = random.Random(version)
    for _ in range(changes if version != "1" else 0):
        weights[rng.randrange(size)] = rng.randrange(256)
    folder.mkdir(parents=True)
    shutil.copyfile(source / "golden.npz", folder / "golden.npz")
    manifest = json.loads((source / "manifest.json").read_text())
    (folder / "model.pte").write_bytes(weights)
    manifest["model"]["version"] = version
    for entry in manifest["files"]:
        if entry["path"] == "model.pte":
            from edgeq._io import sha256_bytes

            entry.update(sha256=sha256_bytes(bytes(weights)), size_bytes=size)
    from edgeq._io import canonical_json

    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    return folder


def keys(folder: Path) -> None:
    """Make signing keys."""
    from edgeq.deliver.ota.keys import new_keys

    new_keys(folder, counts={}, places={})


def release(channel: Path, key_folder: Path, folder: Path) -> None:
    """Publish a bundle."""
    from edgeq.deliver.ota.channel import open_channel
    from edgeq.deliver.ota.entries import Terms, shipped
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import add_release, bases, prepare

    before = open_channel(channel)
    item = prepare(folder, bases(before, shipped(before, "digits", "android-arm64-xnnpack")[:1]))
    add_release(channel, before, load_keys(key_folder), [item], Terms(now=NOW))


def update(store: Path, channel: Path, trust: Path) -> None:
    """Follow the channel; what is tested here is the store, so the self-test only reads the bundle."""
    from edgeq.bundle.reader import read_bundle
    from edgeq.deliver.ota.client import Request
    from edgeq.deliver.ota.client import update as run
    from edgeq.deliver.ota.fetch import open_source

    request = Request(source=open_source(str(channel)), store=store, device_id="d", trust=trust.read_bytes(), clock=NOW)
    run(request, lambda folder: read_bundle(folder) and None)


def go_back(store: Path) -> None:
    """Roll the store back to its previous release."""
    from edgeq._io import disk_errors, lock_dir
    from edgeq.deliver.ota.state import rolled_back
    from edgeq.deliver.ota.store import Store

    with disk_errors(store), lock_dir(store, wait_s=10):
        place = Store(store)
        place.recover()
        state = place.state()
        if state.previous is not None:
            place.save(rolled_back(state, "asked to"))
        place.recover()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that writes.

    Attributes:
        prepare: makes the state before it in an empty folder.
        run: does it there.
        read: fails if the state is torn; returns what it is, in one word.
        measured: names of files that hold times, which differ from run to run.
        most: how many kills at most, for what takes long.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    read: Callable[[Path], str]
    measured: tuple[str, ...] = ()
    most: int = sys.maxsize


def _release_before(work: Path) -> None:
    keys(work / "keys")
    release(work / "target", work / "keys", bundle(work / "one", "1"))
    bundle(work / "two", "2")


def _release_read(work: Path) -> str:
    from edgeq.deliver.ota.channel import open_channel

    with tempfile.TemporaryDirectory(prefix="edgeq-fault-") as name:
        update(Path(name) / "store", work / "target", work / "target" / "metadata" / "1.root.json")
        newest = sorted(path.name for path in (Path(name) / "store" / "slots").iterdir())
    channel = open_channel(work / "target")
    for name in channel.targets.signed.targets if channel else ():
        channel.read(name)  # type: ignore[union-attr]
    return newest[-1]


def _again(run: Callable[[], None]) -> None:
    """Run; that it was done already is no failure."""
    from edgeq.errors import UsageError

    try:
        run()
    except UsageError as err:
        if "already" not in err.what:
            raise


def _update_before(work: Path) -> None:
    _release_before(work)
    trust = work / "channel" / "metadata" / "1.root.json"
    shutil.move(work / "target", work / "channel")
    update(work / "target", work / "channel", trust)
    release(work / "channel", work / "keys", work / "two")


def _update(work: Path) -> None:
    update(work / "target", work / "channel", work / "channel" / "metadata" / "1.root.json")


def _first_before(work: Path) -> None:
    _release_before(work)
    shutil.move(work / "target", work / "channel")
    (work / "target").mkdir()


def _store_read(work: Path) -> str:
    from edgeq.deliver.ota.store import Store

    store = Store(work / "target")
    state = store.state()
    for slot in (state.current, state.previous):
        if slot is not None:
            store.bundle(slot)
    return str(state.current.release if state.current else None)


def _back_before(work: Path) -> None:
    _update_before(work)
    _update(work)


def _install_before(work: Path) -> None:
    from edgeq.deliver.install import install

    (work / "target").mkdir()
    (work / "target" / "settings.gradle.kts").touch()
    install(bundle(work / "one", "1"), work / "target")
    bundle(work / "two", "2")


def _install(work: Path) -> None:
    from edgeq.deliver.install import install

    install(work / "two", work / "target")


def _installed(work: Path) -> str:
    from edgeq._io import recover_dir
    from edgeq.bundle.reader import read_bundle

    place = work / "target/app/src/main/assets/models/digits/android-arm64-xnnpack"
    copy = Path(tempfile.mkdtemp(prefix="edgeq-fault-")) / "models"
    try:  # a kill between the two renames is mended by the next run: look at what that would see
        shutil.copytree(place.parent, copy)
        recover_dir(copy / place.name)
        return read_bundle(copy / place.name).manifest.model.version
    finally:
        shutil.rmtree(copy.parent)


def _package_before(work: Path) -> None:
    os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
    if not _PACKAGED.exists():
        _package_into(_PACKAGED)
    shutil.copytree(_PACKAGED / "cache", work / "cache")
    shutil.copytree(_PACKAGED / "target", work / "target")


def _cold_before(work: Path) -> None:
    _package_before(work)
    shutil.rmtree(work / "cache")


def _package_into(work: Path) -> None:
    from edgeq.cli.run import run

    os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(["package", "digits", "-t", "linux-x86_64-x86", "-o", str(work / "target"), "--quiet"])
    if code:
        from edgeq.errors import EdgeqError, ExitCode

        problem = EdgeqError(f"edgeq package ended with {code}", "")
        problem.exit_code = ExitCode(code)
        raise problem


def _packaged_read(work: Path) -> str:
    from edgeq._io import recover_dir
    from edgeq.bundle.reader import read_bundle

    copy = Path(tempfile.mkdtemp(prefix="edgeq-fault-")) / "digits"
    try:
        shutil.copytree(work / "target" / "digits", copy)
        recover_dir(copy / "linux-x86_64-x86")
        return read_bundle(copy / "linux-x86_64-x86").digest[:8]
    finally:
        shutil.rmtree(copy.parent)


_PACKAGED = Path(tempfile.gettempdir()) / f"edgeq-fault-packaged-{os.getpid()}"
OPERATIONS: dict[str, Operation] = {
    "release": Operation(
        prepare=_release_before,
        run=lambda work: _again(lambda: release(work / "target", work / "keys", work / "two")),
        read=_release_read,
    ),
    "update": Operation(prepare=_update_before, run=_update, read=_store_read),
    "first update": Operation(prepare=_first_before, run=_update, read=_store_read),
    "roll back": Operation(prepare=_back_before, run=lambda work: go_back(work / "target"), read=_store_read),
    "install": Operation(prepare=_install_before, run=_install, read=_installed),
    "package": Operation(prepare=_package_before, run=_package_into, read=_packaged_read),
    "cold package": Operation(
        prepare=_cold_before,
        run=_package_into,
        read=_packaged_read,
        measured=("report.json", "report.html"),
        most=50,
    ),
}


# --- kills and disk errors ---


def kills(root: Path, options: argparse.Namespace) -> int:
    """Kill each operation at every call, then at random times; the next run must recover and leave nothing."""
    bad = 0
    for name, operation in _chosen(options):
        first = _prepared(root, name, operation)
        calls, after = _undisturbed(root, first, operation)
        seen: Counter[str] = Counter()
        count = min(options.count, operation.most)
        for number in _spread(calls, count):
            work = _copy(root, first)
            if number <= calls:
                _child(work, operation, number, KILL)
            else:
                _killed_at_random(work, operation, after.seconds)
            state = _guarded(operation.read, work)
            code = _child(work, operation, 0, 0)
            left = _tree(work / "target")
            torn = state.startswith("torn")
            ok = not torn and code == 0 and _equal(left, after.tree, operation)
            seen["torn" if torn else "recovered" if ok else "not recovered"] += 1
            if not ok:
                bad += 1
                print(f"  {name}: call {number} of {calls}: {state}, then {code}: {_difference(after.tree, left)}")
            shutil.rmtree(work)
        print(f"{name}: {calls} calls, {count} kills: {dict(seen)}", flush=True)
        shutil.rmtree(first)
    return bad


def _spread(calls: int, count: int) -> Iterator[int]:
    """Yield numbers of calls: all of them and more where there are tries enough, else evenly spread ones."""
    if count >= calls:
        yield from range(1, count + 1)
    else:
        yield from (1 + i * calls // count for i in range(count))


def _equal(left: dict[str, bytes | None], right: dict[str, bytes | None], operation: Operation) -> bool:
    return left.keys() == right.keys() and all(
        data == right[name] for name, data in left.items() if Path(name).name not in operation.measured
    )


def errors(root: Path, options: argparse.Namespace) -> int:
    """Let each call fail once in each way: a named error, and the target as it was, or done."""
    bad = 0
    for name, operation in _chosen(options):
        if operation.most < sys.maxsize:
            continue  # four faults at each of its calls would take a day
        first = _prepared(root, name, operation)
        calls, after = _undisturbed(root, first, operation)
        before = _kept(_tree(first / "target"))
        for fault, how in FAULTS.items():
            seen: Counter[str] = Counter()
            for number in range(1, calls + 1):
                work = _copy(root, first)
                code = _child(work, operation, number, how)
                left = _kept(_tree(work / "target"))
                same = "as before" if left == before else "done" if left == _kept(after.tree) else "changed"
                ok = code in (0, 2, 7, 8, 9) and (same != "changed") and not (code == 0 and same == "as before")
                seen[f"exit {code}, {same}"] += 1
                if not ok:
                    bad += 1
                    print(f"  {name}: {fault} at call {number}: exit {code}, {_difference(before, left)}")
                shutil.rmtree(work)
            print(f"{name}: {fault} at {calls} calls: {dict(seen)}", flush=True)
        shutil.rmtree(first)
    return bad


@dataclass(frozen=True, slots=True, kw_only=True)
class _After:
    tree: dict[str, bytes | None]
    seconds: float


def _chosen(options: argparse.Namespace) -> list[tuple[str, Operation]]:
    if options.only and options.only not in OPERATIONS:
        raise SystemExit(f"error: unknown operation {options.only!r}; there are: {', '.join(OPERATIONS)}")
    return [(name, one) for name, one in OPERATIONS.items() if options.only in ("", name)]


def _prepared(root: Path, name: str, operation: Operation) -> Path:
    first = root / f"first {name}"
    first.mkdir()
    operation.prepare(first)
    return first


def _copy(root: Path, first: Path) -> Path:
    work = root / "work"
    shutil.copytree(first, work, symlinks=True)
    return work


def _undisturbed(root: Path, first: Path, operation: Operation) -> tuple[int, _After]:
    work = _copy(root, first)
    read, write = os.pipe()
    start = time.monotonic()
    code = _child(work, operation, -1, 0, report=write)
    took = time.monotonic() - start
    calls = int(os.read(read, 64) or b"0")
    os.close(read)
    os.close(write)
    if code or not calls:
        raise SystemExit(f"the undisturbed run ended with {code} after {calls} calls")
    after = _After(tree=_tree(work / "target"), seconds=took)
    shutil.rmtree(work)
    return calls, after


def _child(work: Path, operation: Operation, number: int, how: int, report: int | None = None) -> int:
    """Run in a fork; return its exit status, 137 for a kill. `number` 0 means without a fault."""
    pid = os.fork()
    if pid == 0:
        os._exit(_in_child(work, operation, number, how, report))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) % 256 if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)


def _in_child(work: Path, operation: Operation, number: int, how: int, report: int | None) -> int:
    from edgeq.cli.run import explain

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
    shim = ctypes.CDLL(os.environ["EDGEQ_FAULT_SHIM"])
    try:
        if number:
            shim.fault_arm(ctypes.c_long(number), ctypes.c_int(how))
        operation.run(work)
        calls = shim.fault_disarm()
    except BaseException as err:  # every kind becomes an exit status
        shim.fault_disarm()
        return int(explain(err).exit_code)
    if report is not None:
        os.write(report, str(calls).encode())
    return 0


def _killed_at_random(work: Path, operation: Operation, seconds: float) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(_in_child(work, operation, 0, 0, None))
    time.sleep(random.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _guarded(read: Callable[[Path], str], work: Path) -> str:
    try:
        return read(work)
    except Exception as err:  # whatever it is, the state is torn
        return f"torn: {type(err).__name__}: {err}"


def _tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): (
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(root.rglob("*"))
    }


def _kept(tree: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Leave out what a store may learn or keep for the next try, and hidden rubbish that the next run removes."""
    state = json.loads(tree.get("state.json") or b"{}")
    for name in ("seen", "trying"):
        state.pop(name, None)
    named = {str(slot["release"]) for slot in (state.get("current"), state.get("previous")) if slot}
    kept = {
        name: data
        for name, data in tree.items()
        if not name.startswith(("trusted", "download", "trust.json", "device.json"))
        and not any(part == ".edgeq.lock" or (part[0] == "." and part.endswith(".tmp")) for part in name.split("/"))
        and not (name.startswith("slots/") and name.split("/")[1] not in named)
    }
    if set(kept) <= {"state.json", "slots"} and not named:
        return {}
    return {**kept, "state.json": json.dumps(state).encode()} if "state.json" in kept else kept


def _difference(left: dict[str, bytes | None], right: dict[str, bytes | None]) -> str:
    more, fewer = sorted(set(right) - set(left)), sorted(set(left) - set(right))
    other = sorted(name for name in set(left) & set(right) if left[name] != right[name])
    return f"more {more[:4]}, fewer {fewer[:4]}, other {other[:4]}"


# --- flipped bits, archives, mutated files ---


def bits(root: Path, options: argparse.Namespace) -> int:
    """Flip single bits of every file that a device reads; then files that come, go, and change places."""
    from edgeq.errors import EdgeqError

    _update_before(root)
    shutil.copytree(root / "target", root / "device", symlinks=True)
    place = root / "channel"
    read = [path for path in sorted(place.rglob("*")) if path.is_file()]
    read = [path for path in read if path.name.startswith(("timestamp", "2.")) or path.suffix == ".patch"]
    seen: Counter[str] = Counter()
    bad = 0
    for number in range(options.count):
        path = read[number % len(read)]
        good = path.read_bytes()
        at, bit = random.randrange(len(good)), random.randrange(8)
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
        _fresh_device(root)
        try:
            _update(root)
            seen["accepted"] += 1
            bad += 1
            print(f"  accepted: bit {bit} of byte {at} of {path.name}")
        except EdgeqError as err:
            seen[f"refused, exit {int(err.exit_code)}"] += 1
        path.write_bytes(good)
    print(f"{options.count} bits of {len(read)} files: {dict(seen)}", flush=True)
    bad += _moved(root, read)
    return bad + _intact(root, max(1, options.count // 10))


def _moved(root: Path, read: list[Path]) -> int:
    """Remove, rename and swap files, and sign with other keys."""
    from edgeq.errors import EdgeqError

    def refused() -> bool:
        _fresh_device(root)
        try:
            _update(root)
        except EdgeqError:
            return True
        return False

    total = bad = 0
    for path in read:
        aside = path.with_name("aside")
        path.rename(aside)
        total, bad = total + 1, bad + (not refused())
        for other in read:
            if other != path:
                shutil.copyfile(other, path)
                total, bad = total + 1, bad + (not refused())
        aside.replace(path)
    shutil.copytree(root / "channel", root / "good")
    shutil.rmtree(root / "channel")
    keys(root / "other")
    release(root / "channel", root / "other", root / "one")
    release(root / "channel", root / "other", root / "two")
    shutil.copyfile(root / "good/metadata/1.root.json", root / "channel/metadata/1.root.json")
    total, bad = total + 1, bad + (not refused())
    shutil.rmtree(root / "channel")
    shutil.move(root / "good", root / "channel")
    print(f"{total} removed, swapped and wrongly signed: {total - bad} refused", flush=True)
    return bad


def _fresh_device(root: Path) -> None:
    """Let the device forget what it verified: it would not read that again."""
    shutil.rmtree(root / "target")
    shutil.copytree(root / "device", root / "target", symlinks=True)


def _intact(root: Path, count: int) -> int:
    alarms = 0
    for _ in range(count):
        _fresh_device(root)
        try:
            _update(root)
        except Exception as err:  # any is a false alarm
            alarms += 1
            print(f"  false alarm: {err}")
    print(f"{count} intact: {alarms} false alarms", flush=True)
    return alarms


def archives(root: Path, options: argparse.Namespace) -> int:
    """Unzip hostile archives: nothing outside the root, no traceback, bounded memory and time."""
    from edgeq.bundle.archive import bundle_zip
    from edgeq.deliver.ota.unzip import unzip
    from edgeq.errors import EdgeqError

    good = bundle_zip(bundle(root / "one", "1"))
    jail = root / "jail"
    seen: Counter[str] = Counter()
    bad, slowest = 0, 0.0
    outside = set(root.rglob("*"))
    for number in range(options.count):
        data = _hostile(good, random.Random(f"{options.seed}-{number}"))
        place = jail / "in"
        place.mkdir(parents=True)
        start = time.monotonic()
        try:
            unzip(data, place, most_bytes=1_000_000)
            seen["a whole bundle"] += 1
        except EdgeqError as err:
            seen[f"exit {int(err.exit_code)}"] += 1
        except Exception:  # what the test looks for
            seen["traceback"] += 1
            bad += 1
            traceback.print_exc()
        slowest = max(slowest, time.monotonic() - start)
        if {path.name for path in jail.iterdir()} != {"in"} or any(path.is_symlink() for path in place.rglob("*")):
            bad += 1
            print(f"  archive {number} wrote outside")
        shutil.rmtree(jail)
    bad += set(root.rglob("*")) != outside
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    bad += peak_mb > 256 or slowest > 5
    print(f"{options.count} archives: {dict(seen)}; peak {peak_mb:.0f} MB, slowest {slowest:.2f} s")
    return bad


def _hostile(good: bytes, rng: random.Random) -> bytes:
    """Return an archive that is damaged, or holds a name, a link, a bomb or a twin."""
    kind = rng.randrange(6)
    if kind < 2:
        data = bytearray(good)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 2:
        cut = sorted(rng.sample(range(len(good)), 2))
        return good[: cut[0]] + good[cut[1] :]
    sink = io.BytesIO(good)
    with contextlib.suppress(UserWarning), zipfile.ZipFile(sink, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("x")
        info.filename = rng.choice(_NAMES) if kind != 5 else "zeros.bin"
        info.external_attr = rng.choice((0o100644, 0o120777, 0o040755, 0o010644)) << 16
        size = rng.choice((10, 100_000, 30_000_000)) if kind == 5 else rng.randrange(60)
        archive.writestr(info, bytes(size), compress_type=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    data = bytearray(sink.getvalue())
    if rng.randrange(2):
        at = len(data) - rng.randrange(1, 200)
        data[at] = rng.randrange(256)
    return bytes(data)


_NAMES = (
    "../out", "a/../../out", "/out", "C:\\out", "c:out", "..\\out", "\\\\host\\out", "MODEL.PTE", "model.pte",
    "manifest.json", "Manifest.json", "golden.npz/", "in/out", ".out", "out\0.pte", "", "\u202eetp.ledom", "CON",
    "a" * 300,
)  # fmt: skip


def manifests(root: Path, options: argparse.Namespace) -> int:
    """Parse mutated manifests."""
    from edgeq.manifest import parse_manifest

    good = (bundle(root / "one", "1") / "manifest.json").read_bytes()
    return _parsed("manifests", good, parse_manifest, options)


def indexes(root: Path, options: argparse.Namespace) -> int:
    """Parse mutated indexes, as if their signatures held."""
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    from edgeq.deliver.ota.facts import parse_index

    _update_before(root)
    good = (root / "channel/metadata/2.targets.json").read_bytes()

    def parse(data: bytes) -> None:
        try:
            targets = Metadata[Targets].from_bytes(data).signed.targets
        except DeserializationError as err:  # python-tuf's named error, which the client translates
            from edgeq.errors import IntegrityError

            raise IntegrityError(str(err), "") from err
        parse_index(targets)

    return _parsed("indexes", good, parse, options)


def states(root: Path, options: argparse.Namespace) -> int:
    """Read mutated state files of a device's store."""
    from edgeq.deliver.ota.store import Store

    _update_before(root)
    path = root / "target/state.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        Store(root / "target").state()

    return _parsed("states", path.read_bytes(), parse, options)


def _parsed(what: str, good: bytes, parse: Callable[[bytes], object], options: argparse.Namespace) -> int:
    from edgeq.errors import EdgeqError

    seen: Counter[str] = Counter()
    bad = 0
    for data in _mutants(good, options):
        try:
            parse(data)
            seen["accepted"] += 1
        except EdgeqError as err:
            seen[f"exit {int(err.exit_code)}"] += 1
        except Exception:  # what the test looks for
            seen["traceback"] += 1
            bad += 1
            traceback.print_exc()
    print(f"{options.count} {what}: {dict(seen)}")
    return bad


def _mutants(good: bytes, options: argparse.Namespace) -> Iterator[bytes]:
    pieces = (
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b"../x",
        b"\xff",
        b"9" * 30,
        b"true",
        b",",
    )
    for number in range(options.count):
        rng = random.Random(f"{options.seed}-{number}")
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at : at + rng.randrange(12)] = rng.choice(pieces)
            elif kind == 2:
                del data[at : at + rng.randrange(40)]
            else:
                other = rng.randrange(len(data))
                data[at:at] = data[other : other + rng.randrange(60)]
            if not data:
                data = bytearray(b"{")
        yield bytes(data)


def patches(_root: Path, options: argparse.Namespace) -> int:
    """Round trips, then mutated patches: byte-exact, or refused."""
    import dataclasses

    from edgeq.deliver.ota.patch import apply_patch, make_patch
    from edgeq.errors import EdgeqError

    bad, seen = 0, Counter[str]()
    made = []
    for number in range(max(1, options.count // 5)):
        rng = random.Random(f"{options.seed}-{number}")
        base = bytes(int(rng.gauss(0, 20)) & 255 for _ in range(rng.choice((0, 1, 100, 3000, 20_000))))
        new = bytearray(base)
        for _ in range(rng.randrange(60)):
            at = rng.randrange(len(new) + 1)
            new[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        patch = make_patch(base, bytes(new))
        bad += apply_patch(patch, base) != bytes(new)
        if patch.data:
            made.append((patch, base, bytes(new)))
    print(f"{max(1, options.count // 5)} round trips: {bad} not byte-exact", flush=True)
    for number in range(options.count):
        rng = random.Random(f"m{options.seed}-{number}")
        patch, base, new = made[number % len(made)]
        data = bytearray(patch.data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.randrange(3) == 0:
            del data[rng.randrange(len(data)) :]
        start = base if rng.randrange(5) else base + b"x"
        try:
            right = apply_patch(dataclasses.replace(patch, data=bytes(data)), start) == new
            seen["byte-exact" if right else "WRONG"] += 1
            bad += not right
        except EdgeqError as err:
            seen[f"refused, exit {int(err.exit_code)}"] += 1
    print(f"{options.count} mutated patches or wrong bases: {dict(seen)}")
    return bad


def artifacts(root: Path, options: argparse.Namespace) -> int:
    """Load and run mutated artifacts in forks of a process that has imported the runtime: no crash of the parent."""
    import numpy as np

    from edgeq.manifest import parse_manifest
    from edgeq.verify import worker

    if options.file is None:
        raise SystemExit("error: give the artifact of a bundle, such as out/digits/android-arm64-xnnpack/model.pte")
    good = options.file.read_bytes()
    manifest = parse_manifest((options.file.parent / "manifest.json").read_bytes())
    inputs = tuple(np.zeros(one.shape, one.dtype) for one in manifest.inputs)
    runner = worker.RUNNERS[manifest.target.runtime]
    backend = manifest.target.backend
    _import_runtime(manifest.target.runtime)
    intact = _run_in_fork(lambda: runner(options.file, backend, 1), inputs)
    seen: Counter[str] = Counter()
    path = root / f"mutant{options.file.suffix}"
    for number in range(options.count):
        rng = random.Random(f"{options.seed}-{number}")
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.randrange(6) == 0:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        seen[_run_in_fork(lambda: runner(path, backend, 1), inputs)] += 1
    print(f"the intact {options.file.name}: {intact}")
    print(f"{options.count} mutants of {options.file.name}: {dict(seen)}; the parent lives")
    return (intact != _RAN) + seen[_ENDED]


_RAN, _ENDED = "loads and runs", "ended without a word"


def _import_runtime(runtime: str) -> None:
    """Import what the forks need, so that each takes milliseconds; threads started here they would lack."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if runtime == "executorch":
        from executorch.extension.pybindings import _C  # noqa: F401
    else:
        import torch.jit.mobile


def _run_in_fork(make: Callable[[], Any], inputs: tuple[object, ...]) -> str:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            runner = make()
            runner.load()
            runner.run(inputs)
        except BaseException:  # the runtimes' errors are of many kinds
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"the child died of {signal.Signals(os.WTERMSIG(status)).name}, which edgeq names"
    return {0: _RAN, 7: "refused by the runtime"}.get(os.WEXITSTATUS(status), _ENDED)


def builds(root: Path, options: argparse.Namespace) -> int:
    """Make one release in processes with other hash seeds, time zones and umasks."""
    keys(root / "keys")
    bundle(root / "one", "1")
    bundle(root / "two", "2")
    digests = set()
    zones = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Chatham")
    for number in range(options.count):
        place = root / f"channel-{number}"
        env = {**os.environ, "PYTHONHASHSEED": str(number), "TZ": zones[number % 4], "SOURCE_DATE_EPOCH": "1790000000"}
        command = [
            sys.executable,
            "-m",
            "edgeq",
            "ota",
            "release",
            "--channel",
            str(place),
            "--keys",
            str(root / "keys"),
        ]
        for name in ("one", "two"):
            umask = (0o022, 0o077, 0o002, 0o027)[number % 4]
            subprocess.run(
                [*command, str(root / name), "--quiet"], check=True, env=env, umask=umask, capture_output=True
            )
        from edgeq._io import canonical_json, sha256_bytes, sha256_file

        files = {str(path.relative_to(place)): sha256_file(path) for path in place.rglob("*") if path.is_file()}
        digests.add(sha256_bytes(canonical_json(files)))
    print(f"{options.count} builds: {len(digests)} digest(s)")
    return len(digests) - 1


TESTS: dict[str, Callable[[Path, argparse.Namespace], int]] = {
    "kills": kills,
    "errors": errors,
    "bits": bits,
    "archives": archives,
    "manifests": manifests,
    "indexes": indexes,
    "states": states,
    "patches": patches,
    "artifacts": artifacts,
    "builds": builds,
}

if __name__ == "__main__":
    main()
