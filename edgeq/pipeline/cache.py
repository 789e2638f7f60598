"""The content-addressed cache of finished bundles: the same command with nothing changed is answered from here.

Layout: `cells/<key>/<dependencies>/{entry.json, bundle/…}`. The key is over everything known before the model is
loaded (options, target, contents of named files, versions); the dependencies are what the user's code looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import read_report
from edgeq.check.limits import counts_on
from edgeq.core.config import LOCAL, BuildConfig, Job
from edgeq.core.errors import EdgeqError, first_line
from edgeq.core.files import (
    cache_folder,
    canonical_json,
    copy_files,
    disk_errors,
    lock_dir,
    remove_dir,
    sha256_bytes,
    sha256_file,
    staged_dir,
    write_atomic,
)
from edgeq.core.manifest import UNLISTED_NAMES
from edgeq.core.marks import options_of
from edgeq.core.results.report import DataFacts, ModelError, PackageResult, with_warning
from edgeq.core.schemes import AUTO, DEFAULT, NEEDS_SEARCH
from edgeq.core.sources import DIGITS, origin
from edgeq.core.system import (
    driver_state,
    edgeq_digest,
    kernel_features,
    processor_kind,
    tool_versions,
)
from edgeq.core.targets import NPU, TargetGroup, TargetProfile
from edgeq.deliver.ota.keys import load_keys, trusted_signers
from edgeq.pipeline.installed import own_libraries, plugins_state
from edgeq.pipeline.plan import COMPARED, BuildUnit, Finished, GroupUnit, Run
from edgeq.pipeline.portable import module_folders, portable, relative
from edgeq.pipeline.publish import judged_again, write_reports
from edgeq.pipeline.stores import Store, Stored, open_stores, pack
from edgeq.pipeline.tracking import current_state, started_in, why_unknown
from edgeq.verify.emulate.cpus import QEMU, emulator_digest
from edgeq.verify.emulate.install import is_native
from edgeq.verify.emulate.support import find_npus, wants_emulation


def unit_of(job: Job, facts: Mapping[str, Any], target: TargetProfile, scheme: str, *, note: str = "") -> BuildUnit:
    """Return a unit of a job; `note` tells results apart that hold more than the scheme's bundle."""
    key = unit_key(facts, target, scheme + note, emulated=wants_emulation(target, job.device))
    return BuildUnit(target=target, scheme=scheme, key=key)


def group_unit_of(
    facts: Mapping[str, Any],
    group: TargetGroup,
    scheme: str,
    candidates: Sequence[BuildUnit],
    left_out: Mapping[str, ModelError],
) -> GroupUnit:
    """Return the unit of a target that stands for several; its key holds the limits, and the kind of this machine.

    Which candidate is the fastest, others of the same kind of machine need not measure again.
    """
    own = {"group": group.name, "candidates": [one.key for one in candidates], "left_out": sorted(left_out)}
    key = sha256_bytes(canonical_json(own | {"judged_by": facts["judged_by"], "cpu": processor_kind()}))
    return GroupUnit(group=group, scheme=scheme, key=key, candidates=tuple(candidates), left_out=left_out)


def restore(units: Sequence[BuildUnit | GroupUnit], work: Path, job: Job) -> Finished:
    """Return the results that the cache has, each bundle copied into the work folder, and judged by the job's gates.

    A result of other limits holds the same measurements. One whose times do not keep the limits of now is left out: the
    machine may be less busy than it was. So is one with times of another kind of machine where a limit is on them.
    """
    found: Finished = {}
    for index, unit in enumerate(units):
        place = work / f"cached-{index}"
        hit = look_up(unit.key, place, job.build)
        for store in open_stores(job.build.cache):
            hit = hit or _look_up_shared(store, unit.key, place, job.build)
        if hit is None:
            continue
        row, data = hit
        if row.source != origin(job.source):  # another checkout's
            row = write_reports(dataclasses.replace(row, source=origin(job.source)), data)
        if isinstance(unit, BuildUnit):
            if unit.scheme != DEFAULT and row.by_default != unit.by_default:  # another run named the scheme, or did not
                row = write_reports(dataclasses.replace(row, by_default=unit.by_default), data)
            if _limits_only_judge(row):
                row = judged_again(row, data, unit.target, job.gates)
        if not _may_pass_later(row) and not _is_timed_elsewhere(row, job.gates.times_on):
            found[unit.key] = (row, data)
    return found


def _is_timed_elsewhere(row: PackageResult, times_on: str | None) -> bool:
    """Whether a limit is on times of another kind of machine, which this one can measure as they count."""
    limited = any(gate.name in _timed_gates(row) and gate.outcome != "allowed" for gate in row.checked.gates)
    if not limited or _machine(row) == "":
        return False
    if times_on is None:
        judged = any(gate.name in _timed_gates(row) and gate.outcome in ("ok", "failed") for gate in row.checked.gates)
        return judged and _machine(row) != processor_kind()
    return counts_on(times_on, processor_kind()) and not counts_on(times_on, _machine(row))


def _machine(row: PackageResult) -> str:
    return row.verified.timing.cpu if row.verified.timing is not None else ""


def _limits_only_judge(row: PackageResult) -> bool:
    """Whether the limits decided nothing but the verdict; those of a search or a choice decided what was made.

    `unit_key` says the same of what is still to be made: there limits are in the key exactly where this is False.
    """
    chosen = row.choice is not None or row.fastest is not None
    return not chosen and row.compared is None and row.scheme not in NEEDS_SEARCH


def stored(made: Finished, dependencies: Mapping[str, str], build: BuildConfig | None = None) -> Finished:
    """Keep what was made in the cache; a cache that cannot be written to costs a warning, not the result.

    Args:
        made: by the units' keys.
        dependencies: what the user's code looked at.
        build: the shared caches that it is written to as well; None for none.
    """
    kept = {}
    stores = () if build is None else open_stores(build.cache)
    for key, (row, data) in made.items():
        # a device that could not be emulated this time may be the next
        not_emulated = row.verified.emulation is not None and bool(row.verified.emulation.problem)
        if not_emulated or (_may_pass_later(row) and not _limits_only_judge(row)):
            kept[key] = (row, data)
            continue
        try:
            store(key, row, data, dependencies)
        except (EdgeqError, OSError) as err:
            why = err.what if isinstance(err, EdgeqError) else first_line(err)
            row = with_warning(row, f"the result was not kept in the cache: {why}")
        for shared in stores:
            if build is not None and not build.cache_read_only:
                _share(shared, key, row, data, dependencies, build)
        for text in dict.fromkeys(text for one in stores for text in one.warnings):
            row = with_warning(row, text)
        kept[key] = (row, data)
    return kept


def _may_pass_later(row: PackageResult) -> bool:
    """Whether the same may pass with nothing changed but how busy the machine is: that is to be measured again.

    Load can only lengthen a time, so one that kept its limit is as good from the cache. The peak memory of a run
    differs by what the allocator had at hand.
    """
    return any(gate.outcome == "failed" and gate.name in _timed_gates(row) for gate in row.checked.gates)


def _timed_gates(row: PackageResult) -> set[str]:
    cost = row.verified.cost
    return {"latency", "load", "peak_memory"} - ({"latency"} if cost is not None and cost.prediction else set())


def keep(run: Run, made: Finished, dependencies: Mapping[str, str] | None) -> Finished:
    """Keep results in the cache, if there is one, and return them.

    Args:
        run: the job, and its files as they were at its start.
        made: by the units' keys.
        dependencies: what the user's code looked at; None where that changed meanwhile.
    """
    # a file that was changed meanwhile may be part of the result or not
    if run.job.cache and dependencies is None:
        why = f"the result was not kept in the cache: {why_unknown()}"
        return {key: (with_warning(row, why), data) for key, (row, data) in made.items()}
    if not run.job.cache or dependencies is None or job_facts(run.job) != run.facts:
        return made
    return stored(made, portable(dependencies, started_in()), run.job.build)


def seen_of(keys: Sequence[str], build: BuildConfig) -> dict[str, str] | None:
    """Return what the user's code looked at for several results; None where one of them is not in the cache."""
    seen = [dependencies_of(key, build) for key in keys]
    if any(one is None for one in seen):
        return None
    return {name: state for one in seen if one is not None for name, state in one.items()}


_LOCK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What a level of the cache holds.

    Attributes:
        place: the local folder, or the address of a shared cache.
        runtimes_bytes: of the devices' runtimes, which only the local folder has.
    """

    place: str
    entries: int
    size_bytes: int
    runtimes_bytes: int = 0


def cache_info(level: str = LOCAL) -> CacheInfo:
    """Return where a level of the cache is, how many bundles it holds, and their bytes.

    Raises:
        EnvironmentProblem: a shared cache cannot be read.
        UsageError: it has an unknown kind of address.
    """
    if level != LOCAL:
        (store,) = open_stores((level,))
        held = store.stored()
        entries = sum(len(one.paths) == 2 for one in held)
        return CacheInfo(place=level, entries=entries, size_bytes=sum(one.size_bytes for one in held))
    folder = cache_folder()
    sizes = {path: _size_bytes(path) for path in (folder / "cells").rglob("*")}
    entries = sum(path.name == "entry.json" for path in sizes)
    runtimes = sum(_size_bytes(path) for path in (folder / "emulator").rglob("*"))
    return CacheInfo(place=str(folder), entries=entries, size_bytes=sum(sizes.values()), runtimes_bytes=runtimes)


def _size_bytes(path: Path) -> int:
    with contextlib.suppress(OSError):  # another edgeq may take it away meanwhile
        return path.stat().st_size if path.is_file() else 0
    return 0


def clear_cache(level: str = LOCAL) -> int:
    """Remove every entry of a level, and return how many there were.

    Raises:
        EnvironmentProblem: it may not be written to, or another edgeq holds the local cache's lock.
    """
    if level != LOCAL:
        (store,) = open_stores((level,))
        held = store.stored()
        store.remove(held)
        return sum(len(one.paths) == 2 for one in held)
    folder = cache_folder()
    entries = cache_info().entries
    for name in ("cells", "qat", "search"):
        if (folder / name).exists():
            with disk_errors(folder), lock_dir(folder, wait_s=_LOCK_S):
                shutil.rmtree(folder / name)
    return entries


_HALF_WRITTEN_S = 86_400.0  # after a day, a bundle that no entry names is not about to get one


def prune_cache(level: str, *, older_than_s: float | None, max_size_bytes: int | None) -> tuple[int, int]:
    """Remove entries of a level by age, then the oldest ones until it is small enough.

    Args:
        level: the local cache, or a shared one.
        older_than_s: the age from which an entry goes: since it was last used in the local cache, since it was
            written in a shared one. None for none.
        max_size_bytes: what may stay; None for any.

    Returns:
        How many entries were removed, and their bytes.

    Raises:
        EnvironmentProblem: it may not be written to, or another edgeq holds the local cache's lock.
    """
    if level == LOCAL:
        held = [_stored_at(path.parent) for path in (cache_folder() / "cells").glob("*/*/entry.json")]
    else:
        (store,) = open_stores((level,))
        held = store.stored()
    now = time.time()
    left = sum(one.size_bytes for one in held)
    doomed = []
    for one in sorted(held, key=lambda one: one.changed_s):
        is_torn = level != LOCAL and len(one.paths) < 2 and now - one.changed_s > _HALF_WRITTEN_S
        is_old = older_than_s is not None and now - one.changed_s > older_than_s
        if is_torn or is_old or (max_size_bytes is not None and left > max_size_bytes):
            doomed.append(one)
            left -= one.size_bytes
    if level != LOCAL:
        store.remove(doomed)
    elif doomed:
        with disk_errors(cache_folder()), lock_dir(cache_folder(), wait_s=_LOCK_S):
            for one in doomed:
                remove_dir(Path(one.paths[0]), below=cache_folder() / "cells")
    return len(doomed), sum(one.size_bytes for one in doomed)


def _stored_at(entry: Path) -> Stored:
    size_bytes = sum(_size_bytes(path) for path in entry.rglob("*"))
    return Stored(paths=(str(entry),), size_bytes=size_bytes, changed_s=(entry / "entry.json").stat().st_mtime)


# variables by which libraries choose their kernels, or by which others are loaded in their place
_CHOOSING = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("OPENBLAS_CORETYPE", "NVIDIA_TF32_OVERRIDE", "LD_PRELOAD", "LD_LIBRARY_PATH"),
)


def machine_facts() -> dict[str, Any]:
    """Return what of this machine can change a result: edgeq, its libraries and tools, and the processor's kernels."""
    return {
        "edgeq": edgeq_digest(),
        "libraries": own_libraries(),
        "plugins": plugins_state("torch.backends"),  # which torch imports by itself
        "tools": tool_versions(),
        "host": [*kernel_features(), sys.platform, {name: os.environ.get(name) for name in _CHOOSING}],
    }


def device_facts() -> dict[str, str]:
    """Return which devices of this machine some units need: a GPU with its driver, and an emulator; "" for none."""
    return {"gpu": driver_state(), "emulator": emulator_digest() if is_native() or shutil.which(QEMU) else ""}


def job_options(job: Job) -> dict[str, Any]:
    """Return the options of a job that decide what is made, and its limits, with paths relative to the project."""
    options = [option for option in options_of(Job) if option.not_in_key is None and not option.is_table]
    return {
        "options": relative(json.loads(json.dumps({one.key: one.value_in(job) for one in options}, default=str))),
        "judged_by": relative(json.loads(json.dumps(dataclasses.asdict(job.gates), default=str))),
    }


def named_files(job: Job) -> dict[str, str | None]:
    """Return the hash of each file or folder that an option of a job names, by its path relative to the project."""
    names = [
        name
        for option in options_of(Job)
        if option.not_in_key is None and not option.is_table and option.path is not None
        for text in option.texts_in(job)
        for name in option.path.contents(text)
    ]
    return {relative(name): _content(Path(name)) for name in names if name != DIGITS}


def job_facts(job: Job, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return everything that is known before the model is loaded and holds for all units of a run.

    Every option of a job is part of it but those marked `NotInKey`, and so is the content of each file that one names.
    Paths in the project, which is the current folder, are relative to it: two checkouts have equal facts.

    Args:
        job: the job.
        machine: the facts of the machines that build, `devices` among them; None for this one's.
    """
    return {
        **job_options(job),
        "files": named_files(job),
        "folders": module_folders(),
        **({**machine_facts(), "devices": device_facts()} if machine is None else machine),
    }


def unit_key(facts: Mapping[str, Any], target: TargetProfile, scheme: str, *, emulated: bool = False) -> str:
    """Return the hash of the job's facts, a target and a scheme, and of the emulator where it is used.

    The limits are part of it where they decide what is made; elsewhere kept measurements are judged again
    (`_limits_only_judge`).
    """
    if scheme not in (AUTO, *NEEDS_SEARCH) and not scheme.endswith(COMPARED):
        facts = {name: value for name, value in facts.items() if name != "judged_by"}
    own: dict[str, Any] = {"target": target.model_dump(mode="json"), "scheme": scheme, "emulator": None}
    devices = facts["devices"]
    facts = {name: value for name, value in facts.items() if name != "devices"}
    if target.runtime == "cuda":
        own["gpu"] = devices["gpu"]
    if emulated and target.backend == NPU:
        own["emulator"] = [str(npu) for npu in find_npus(target.device.cpu)]
    elif emulated:
        own["emulator"] = devices["emulator"]
    return sha256_bytes(canonical_json({**facts, **own}))


def _content(path: Path) -> str | None:
    """Return the hash of a file, or of all files below a folder; None for what is no path."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    hashes = {os.fsencode(inner.relative_to(path)).hex(): sha256_file(inner) for inner in files}
    return sha256_bytes(canonical_json(hashes))


def look_up(key: str, target: Path, build: BuildConfig | None = None) -> tuple[PackageResult, DataFacts] | None:
    """Copy a valid entry's bundle to `target`, and return what it was; None if there is none.

    A torn or tampered entry is removed, not used. One that came from a shared cache must be signed by a key that the
    run trusts, if it names keys.

    Raises:
        OSError: the disk of `target` is full.
    """
    for entry, whole in _valid(key, build):
        found = _restored(entry, whole["facts"], target)
        if found is not None:
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(entry / "entry.json")  # `edgeq cache prune` keeps what is used
            return found
        _discard(entry)
    return None


def dependencies_of(key: str, build: BuildConfig) -> dict[str, str] | None:
    """Return what the user's code looked at for a result that is kept and trusted; None if there is none."""
    return next((dict(whole["facts"]["dependencies"]) for _, whole in _valid(key, build)), None)


def _valid(key: str, build: BuildConfig | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the trusted entries whose dependencies are as they were; a torn or tampered one is removed.

    Nothing of an entry that came from a shared cache is used before its signature is checked. Those of this kind of
    machine come first: a limit may be on their times.
    """
    found = []
    for entry in _entries(key):
        try:
            whole = _sound((entry / "entry.json").read_bytes(), key, entry.name)
        except OSError:
            whole = None
        if whole is None:
            _discard(entry)
        elif ("from" not in whole or build is None or _is_trusted(whole, build)) and _is_current(whole):
            found.append((entry, whole))
    yield from sorted(found, key=lambda one: _is_of_another_machine(one[1]))


def _sound(data: bytes, key: str, name: str) -> dict[str, Any] | None:
    """Return what an entry says of itself; None unless it is what `store` wrote under this very name."""
    try:
        whole: dict[str, Any] = json.loads(data)
        facts = whole["facts"]
        is_sound = (
            whole["sha256"] == sha256_bytes(canonical_json(facts))
            and facts["key"] == key
            and _name(facts["dependencies"], facts["cpu"]) == name
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return whole if is_sound else None


def _is_current(whole: Mapping[str, Any]) -> bool:
    """Whether what the user's code looked at is as it was; another state of the user's files may come back."""
    return all(current_state(name) == state for name, state in whole["facts"]["dependencies"].items())


def _is_of_another_machine(whole: Mapping[str, Any]) -> bool:
    return whole["facts"]["cpu"] not in ("", processor_kind())


def _name(dependencies: Mapping[str, str], cpu: str) -> str:
    return sha256_bytes(canonical_json([dict(dependencies), cpu]))


def _entries(key: str) -> tuple[Path, ...]:
    try:
        return tuple(sorted(path for path in _unit_folder(key).iterdir() if not path.name.startswith(".")))
    except OSError:  # there is none, or it may not be read
        return ()


def _unit_folder(key: str) -> Path:
    return cache_folder() / "cells" / key


def _discard(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)


def _restored(entry: Path, facts: Mapping[str, Any], target: Path) -> tuple[PackageResult, DataFacts] | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        with staged_dir(target) as staging:
            copy_files(entry / "bundle", staging)
            # the very bytes that are put in place are those that are checked
            bundle = read_bundle(staging)
            if bundle.digest != facts["digest"] or _reports(staging) != facts["reports"]:
                return None
            row = read_report(staging)
            data = TypeAdapter(DataFacts).validate_python(facts["data"])
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the entry is not to blame
        return None
    except (EdgeqError, KeyError, ValidationError):
        return None
    return dataclasses.replace(row, path=target, cached=True), data


def store(key: str, row: PackageResult, data: DataFacts, dependencies: Mapping[str, str]) -> None:
    """Keep a finished bundle, accepted or rejected.

    Raises:
        EnvironmentProblem: the disk is full or may not be written to, or another edgeq holds the cache's lock.
    """
    _store(key, row.path, _described(key, row, data, dependencies))


def _store(key: str, bundle: Path, whole: Mapping[str, Any]) -> None:
    folder = cache_folder()
    facts = whole["facts"]
    place = _unit_folder(key) / _name(facts["dependencies"], facts["cpu"])
    with disk_errors(folder), lock_dir(folder, wait_s=_LOCK_S), staged_dir(place) as staging:
        (staging / "bundle").mkdir()
        copy_files(bundle, staging / "bundle")
        write_atomic(staging / "entry.json", canonical_json(whole))


def _described(
    key: str, row: PackageResult, data: DataFacts, dependencies: Mapping[str, str], archive: Path | None = None
) -> dict[str, Any]:
    """Return what an entry says of itself: hashes of all that it holds, and the hash of these.

    Args:
        key: its key.
        row: its result.
        data: what the result tells of its data.
        dependencies: what the user's code looked at.
        archive: the ZIP that a shared cache has of the bundle.
    """
    facts: dict[str, Any] = {
        "key": key,
        "digest": row.digest,
        "reports": _reports(row.path),
        "dependencies": dict(dependencies),
        "cpu": _machine(row),
        "data": dataclasses.asdict(data),
    }
    if archive is not None:
        facts |= {"bundle": sha256_file(archive), "bundle_bytes": archive.stat().st_size}
    return {"facts": facts, "sha256": sha256_bytes(canonical_json(facts))}


def _reports(folder: Path) -> dict[str, str]:
    """Return the hash of each report, and of each other file that the bundle's digest does not cover."""
    return {name: sha256_file(folder / name) for name in UNLISTED_NAMES if (folder / name).exists()}


# --- Shared caches: the same entries, which others may have written.


_SIGNED = b"edgeq cache entry\n"  # before the facts, so that a signature is good for nothing else


def _look_up_shared(store: Store, key: str, target: Path, build: BuildConfig) -> tuple[PackageResult, DataFacts] | None:
    """Look an entry up in a shared cache, and keep what is found in the local one."""
    candidates = []
    for name, data in store.entries(key):
        whole = _sound_and_trusted(store, data, key, name, build)
        if whole is not None and _is_current(whole):
            candidates.append(whole)
    for whole in sorted(candidates, key=_is_of_another_machine):
        with tempfile.TemporaryDirectory(prefix="fetched-", dir=target.parent) as work:
            found = _fetched(store, key, whole, Path(work), target)
            if found is None:
                continue
            with contextlib.suppress(EdgeqError, OSError):  # then the next run fetches it again
                _store(key, Path(work) / "bundle", {**whole, "from": store.url})
            return found
    return None


def _sound_and_trusted(store: Store, data: bytes, key: str, name: str, build: BuildConfig) -> dict[str, Any] | None:
    """Return what an entry of a shared cache says of itself; None, with a warning, for one that is not used.

    Who signed it is checked before anything that it says is used.
    """
    whole = _sound(data, key, name)
    if whole is None or not _names_bundle(whole["facts"]):
        store.warn(f"an entry of {store.url} is damaged, and is not used ({key[:12]})")
        return None
    if not _is_trusted(whole, build):
        store.warn(
            f"an entry of {store.url} is not signed by a key of --cache-trust, and is not used ({key[:12]}); "
            "build it where that key is, with --cache-key"
        )
        return None
    return whole


def _names_bundle(facts: Mapping[str, Any]) -> bool:
    sha256, size_bytes = facts.get("bundle"), facts.get("bundle_bytes")
    is_hash = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
    return is_hash and isinstance(size_bytes, int) and size_bytes > 0


def _fetched(
    store: Store, key: str, whole: Mapping[str, Any], work: Path, target: Path
) -> tuple[PackageResult, DataFacts] | None:
    """Put an entry's bundle in place; None, with a warning, where it is not what the entry names."""
    facts = whole["facts"]
    if not store.fetch(key, facts["bundle"], facts["bundle_bytes"], work):
        return None
    found = _restored(work, facts, target)
    if found is None:
        store.warn(f"an entry of {store.url} does not have the content that it names, and is not used")
    return found


def _share(
    store: Store, key: str, row: PackageResult, data: DataFacts, dependencies: Mapping[str, str], build: BuildConfig
) -> None:
    """Add a result to a shared cache, where it is not, or where what is there was found bad."""
    name = _name(dependencies, _machine(row))
    with tempfile.TemporaryDirectory(prefix="shared-", dir=row.path.parent) as folder:
        work = Path(folder)
        held = store.held(key, name)
        if held is not None:
            whole = _sound_and_trusted(store, held.data, key, name, build)
            (work / "there").mkdir()
            if whole is not None and _fetched(store, key, whole, work / "there", work / "bundle") is not None:
                return
        archive = work / "bundle.zip"
        pack(row.path, archive)
        whole = _described(key, row, data, dependencies, archive)
        if build.cache_key is not None:
            try:
                signers = load_keys(build.cache_key).signers("targets")
                signatures = [signer.sign(_SIGNED + canonical_json(whole["facts"])) for signer in signers]
            # a key that is gone since the run started, or a service that signs has errors of its own
            except Exception as err:
                store.warn(f"nothing was written to {store.url}, since it could not be signed: {first_line(err)}")
                return
            whole["signatures"] = [{"keyid": one.keyid, "sig": one.signature} for one in signatures]
        store.put(key, name, canonical_json(whole), archive, instead_of=held)


_MOST_SIGNATURES = 32  # two roles' worth of `edgeq keys`


def _is_trusted(whole: Mapping[str, Any], build: BuildConfig) -> bool:
    """Whether those whom `cache_trust` names signed an entry; True where it names nobody."""
    if not build.cache_trust:
        return True
    content = _SIGNED + canonical_json(whole["facts"])
    listed = whole.get("signatures", ())
    texts = [one.get("sig") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    signatures = [text for text in texts if isinstance(text, str)][:_MOST_SIGNATURES]
    return any(trusted.have_signed(content, signatures) for trusted in trusted_signers(build.cache_trust))
