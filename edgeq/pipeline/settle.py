"""Both ends of a verdict.json: written where a bundle was measured, it settles the bundle where that is released."""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq._io import disk_errors, write_atomic
from edgeq.artifacts import DeviceMeasures, Gate, VerifyReport
from edgeq.errors import EnvironmentProblem, IntegrityError, UsageError, VerificationError
from edgeq.machine import processor_name
from edgeq.manifest import MANIFEST_NAME, GateVerdict, Manifest, manifest_bytes
from edgeq.pipeline.elsewhere import RUNTIME_PACKAGES, Elsewhere, judge, load_verdict, read_verdict
from edgeq.verdict import SCHEMA_VERSION, DeviceFacts, OutputFacts, RunFacts, Verdict, verdict_bytes

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.verify import BundleVerification

_PLATFORMS = {"Linux": "linux", "Darwin": "macos"}


def write_verdict(result: BundleVerification, path: Path, now: datetime.datetime) -> Path | None:
    """Write what a verification measured, for gates elsewhere.

    Args:
        result: of a real device, or of this host alone.
        path: the file.
        now: in UTC.

    Returns:
        The file, or None where nothing was measured: the artifact did not run.

    Raises:
        EnvironmentProblem: the file cannot be written, or this host is of no kind that a verdict can name.
    """
    measures = result.verified.device or _host_measures(result.verified, result.manifest)
    if measures is None or not result.outputs:
        return None
    verdict = Verdict.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "bundle": result.digest,
            "edgeq": importlib.metadata.version("edgeq"),
            "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": _device(measures),
            "run": _run(measures),
            "outputs": tuple(_output(array) for array in result.outputs),
        }
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, verdict_bytes(verdict))
    return path


def _device(measures: DeviceMeasures) -> DeviceFacts:
    return DeviceFacts.model_validate(
        {
            "name": measures.device[:200],
            "platform": measures.platform,
            "os": measures.os,
            "arch": measures.arch,
            "cores": measures.cores,
            "is_virtual": measures.is_virtual,
        }
    )


def _run(measures: DeviceMeasures) -> RunFacts:
    return RunFacts(
        runtime=measures.runtime,
        threads=measures.threads,
        warmup=measures.warmup,
        latencies_ms=measures.latencies_ms,
        load_ms=measures.load_ms,
        peak_memory_bytes=measures.peak_memory_bytes,
    )


def _output(array: Any) -> OutputFacts:
    import numpy as np

    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(plain.tobytes()).decode()
    return OutputFacts.model_validate({"dtype": str(array.dtype), "shape": array.shape, "data": data})


def _host_measures(verified: VerifyReport, manifest: Manifest) -> DeviceMeasures | None:
    """Return this host's times as those of a device; None where the artifact did not run on it."""
    timing, system = verified.timing, platform.system()
    if timing is None:
        return None
    if system not in _PLATFORMS or timing.arch not in ("arm64", "x86_64"):
        what = f"this host is {system} on {timing.arch}: a verdict names Linux or macOS, on arm64 or x86_64"
        raise EnvironmentProblem(what, "measure on another machine, or on a device: --on ssh:HOST or --on adb")
    package = RUNTIME_PACKAGES[manifest.target.runtime]
    return DeviceMeasures(
        device=timing.gpu or processor_name(),
        platform=_PLATFORMS[system],
        os=f"macOS {platform.mac_ver()[0]}" if system == "Darwin" else f"{system} {platform.release()}",
        arch=timing.arch,
        cores=os.cpu_count() or 0,
        is_virtual=False,
        runtime=f"{package} {importlib.metadata.version(package)}",
        threads=timing.threads,
        warmup=timing.warmup,
        runs=timing.runs,
        p50_ms=timing.p50_ms,
        p90_ms=timing.p90_ms,
        load_ms=verified.load_ms,
        peak_memory_bytes=verified.peak_memory_bytes,
        latencies_ms=timing.latencies_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A bundle whose own gates were measured since it was packaged.

    Attributes:
        folder: the bundle as it is to be released; its manifest says what was settled, so that its digest is another.
        gates: those gates, and others that were measured again; none of a bundle that is as it was packaged.
        device: what measured them.
    """

    folder: Path
    gates: tuple[Gate, ...]
    device: str

    @property
    def told(self) -> str:
        """What was settled, as one line for people; "" for nothing."""
        return (
            ""
            if not self.gates
            else f"{', '.join(gate.name for gate in self.gates)}: measured on {self.device}, by its verdict"
        )


@contextlib.contextmanager
def settled_bundle(folder: Path, verdict: Path, *, digest: str | None = None) -> Iterator[Settled]:
    """Yield a copy of a bundle in which the gates that nobody had measured are as a verdict settles them.

    Args:
        folder: the bundle; one that was rejected for such gates alone may be released then.
        verdict: its verdict.json.
        digest: what the bundle's must be; None where nobody said.

    Raises:
        VerificationError: what was measured breaks a limit, the outputs differ, or the verdict settles nothing.
        EdgeqError: as `read_bundle`, `read_golden` and `read_verdict`.
    """
    from edgeq.bundle.golden import read_golden
    from edgeq.bundle.reader import read_bundle

    bundle = read_bundle(folder, digest=digest)
    elsewhere = judge(bundle, read_golden(bundle), read_verdict(verdict, bundle))
    _check(bundle, verdict, elsewhere)
    manifest = _settled(bundle.manifest, elsewhere)
    temporary = Path(tempfile.gettempdir())
    with disk_errors(temporary), tempfile.TemporaryDirectory(prefix="edgeq-settled-") as name:
        place = Path(name) / folder.name
        place.mkdir()
        for entry in manifest.files:
            shutil.copyfile(folder / entry.path, place / entry.path)
        (place / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
        yield Settled(folder=place, gates=tuple(elsewhere.settled.values()), device=elsewhere.measures.device)


@contextlib.contextmanager
def settled_bundles(folders: Sequence[Path], verdicts: Sequence[Path]) -> Iterator[tuple[Settled, ...]]:
    """Yield bundles as they are to be released: those that a verdict is on, as that settles them; others as they are.

    Raises:
        IntegrityError: a verdict is on none of the bundles.
        UsageError: two verdicts are on one bundle.
        EdgeqError: as `settled_bundle`.
    """
    from edgeq.bundle.reader import read_bundle

    left: dict[str, Path] = {}
    for path in verdicts:
        other = left.setdefault(load_verdict(path).bundle, path)
        if other is not path:
            what = f"{other} and {path} are verdicts on one bundle: which of the two devices counts?"
            raise UsageError(what, "give the slower device's alone; see each: edgeq verify BUNDLE --verdict FILE")
    with contextlib.ExitStack() as stack:
        places = []
        for folder in folders:
            verdict = left.pop(read_bundle(folder).digest, None) if left else None
            as_it_is = Settled(folder=folder, gates=(), device="")
            places.append(stack.enter_context(settled_bundle(folder, verdict)) if verdict else as_it_is)
        for digest, path in left.items():
            what = f"{path} is the verdict on the bundle {digest}, which is none of these"
            raise IntegrityError(what, "leave it out, or name its bundle")
        yield tuple(places)


def _check(bundle: Bundle, verdict: Path, elsewhere: Elsewhere) -> None:
    again = f"see it all: edgeq verify {bundle.folder} --verdict {verdict}"
    if elsewhere.failed:
        what = f"{bundle.folder} does not pass as {verdict} measured it: {_told(elsewhere.failed)}"
        raise VerificationError(what, again)
    why = "; ".join(f"{name}: {why}" for name, why in elsewhere.unsettled.items())
    if not elsewhere.settled:
        why = why or "its manifest has no unmeasured gate"
        raise VerificationError(f"{verdict} settles nothing of {bundle.folder}: {why}", again)
    names = [gate.name for gate in bundle.manifest.gates if gate.outcome not in ("ok", "allowed")]
    rest = [name for name in names if name not in elsewhere.settled]
    if rest:
        what = f"{bundle.folder} did not pass its gates, and {verdict} does not settle {', '.join(rest)}"
        raise VerificationError(f"{what}; {why}" if why else what, again)


def _told(gates: Sequence[Gate]) -> str:
    return "; ".join(": ".join(filter(None, (f"{one.name} {one.measured} ({one.limit})", one.detail))) for one in gates)


def _settled(manifest: Manifest, elsewhere: Elsewhere) -> Manifest:
    """Return the manifest with the gates as they are now; like every manifest it names no times and no device."""
    measures = elsewhere.measures
    where = f"measured on {measures.platform} {measures.arch} in {measures.runtime}, by verdict.json"

    def now(gate: GateVerdict) -> GateVerdict:
        found = elsewhere.settled.get(gate.name)
        if found is None or gate.outcome == "ok":
            return gate
        return gate.model_copy(update={"outcome": found.outcome, "detail": where})

    gates = tuple(now(gate) for gate in manifest.gates)
    accepted = all(gate.outcome in ("ok", "allowed") for gate in gates)
    return manifest.model_copy(update={"gates": gates, "accepted": accepted})
