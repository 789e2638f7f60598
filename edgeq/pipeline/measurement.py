"""verdict.json: write it where a bundle is measured, apply it where the bundle is released."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.bundle.archive import download_size_bytes
from edgeq.bundle.golden import read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.check.artifact import outputs_gate, parity_gate
from edgeq.check.bundle import golden_gate, limit_gates
from edgeq.check.device import device_gate
from edgeq.check.gate import unverified
from edgeq.core.config import GateOptions
from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError, VerificationError
from edgeq.core.files import disk_errors, write_atomic
from edgeq.core.lazy import np
from edgeq.core.manifest import MANIFEST_NAME, Bundle, GateVerdict, Manifest, manifest_bytes
from edgeq.core.measurement import (
    MAX_VERDICT_BYTES,
    SCHEMA_VERSION,
    DeviceFacts,
    OutputFacts,
    RunFacts,
    Verdict,
    parse_verdict,
    verdict_bytes,
)
from edgeq.core.results.measured import Agreement, DeviceMeasures, DeviceRun, Emulation, Parity, VerifyReport
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import BundleVerification, Gate, GoldenSet
from edgeq.core.samples import Outputs
from edgeq.core.schemes import LimitName
from edgeq.core.system import processor_name
from edgeq.verify.accumulate import infinity_findings
from edgeq.verify.golden import compare_golden
from edgeq.verify.metrics import Comparison, percentile_ms

_PLATFORMS = {"Linux": "linux", "Darwin": "macos"}


def write_verdict(result: BundleVerification, path: Path, now: datetime.datetime) -> Path | None:
    """Write the measurements of a verification, for gates on another machine.

    Args:
        result: of a real device, or of this host alone.
        path: the file.
        now: in UTC.

    Returns:
        The file, or None where nothing was measured: the artifact did not run.

    Raises:
        EnvironmentProblem: the file cannot be written, or a verdict cannot describe this kind of host.
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
            "device": DeviceFacts.model_validate(
                {
                    "name": measures.device[:200],
                    "platform": measures.platform,
                    "os": measures.os,
                    "arch": measures.arch,
                    "cores": measures.cores,
                    "is_virtual": measures.is_virtual,
                }
            ),
            "run": RunFacts(
                runtime=measures.runtime,
                threads=measures.threads,
                warmup=measures.warmup,
                latencies_ms=measures.latencies_ms,
                load_ms=measures.load_ms,
                peak_memory_bytes=measures.peak_memory_bytes,
            ),
            "outputs": tuple(_output(array) for array in result.outputs),
        }
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, verdict_bytes(verdict))
    return path


def _output(array: Any) -> OutputFacts:
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(plain.tobytes()).decode()
    return OutputFacts.model_validate({"dtype": str(array.dtype), "shape": array.shape, "data": data})


def _host_measures(verified: VerifyReport, manifest: Manifest) -> DeviceMeasures | None:
    """Return this host's times as those of a device; None where the artifact did not run on it."""
    timing, system = verified.timing, platform.system()
    if timing is None:
        return None
    if system not in _PLATFORMS or timing.arch not in ("arm64", "x86_64"):
        what = f"this host is {system} on {timing.arch}, but a verdict needs Linux or macOS on arm64 or x86_64"
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
    """A bundle whose gates were measured after it was packaged.

    Attributes:
        folder: the bundle to release; its manifest has the measured gates, so its digest differs.
        gates: the gates that were measured; empty for an unchanged bundle.
        device: where they were measured.
    """

    folder: Path
    gates: tuple[Gate, ...]
    device: str

    @property
    def told(self) -> str:
        """The measured gates as one line of text; "" for none."""
        return (
            ""
            if not self.gates
            else f"{', '.join(gate.name for gate in self.gates)}: measured on {self.device}, by its verdict"
        )


@contextlib.contextmanager
def settled_bundle(folder: Path, verdict: Path, *, digest: str | None = None) -> Iterator[Settled]:
    """Yield a copy of a bundle in which a verdict's measurements replace its unverified gates.

    Args:
        folder: the bundle; one that was rejected for such gates alone may be released then.
        verdict: its verdict.json.
        digest: what the bundle's must be; None to accept any.

    Raises:
        VerificationError: a measurement exceeds a limit, the outputs differ, or a gate has no measurement.
        EdgeqError: as `read_bundle`, `read_golden` and `read_verdict`.
    """
    bundle = read_bundle(folder, digest=digest)
    elsewhere = judge(bundle, read_golden(bundle), read_verdict(verdict, bundle))
    again = f"see all gates with: edgeq verify {bundle.folder} --verdict {verdict}"
    if elsewhere.failed:
        what = f"{bundle.folder} fails gates with the measurements of {verdict}: {_gates_text(elsewhere.failed)}"
        raise VerificationError(what, again)
    why = "; ".join(f"{name}: {why}" for name, why in elsewhere.unsettled.items())
    if not elsewhere.settled:
        why = why or "its manifest has no unmeasured gate"
        raise VerificationError(
            f"{verdict} has no measurement for any unverified gate of {bundle.folder}: {why}", again
        )
    names = [gate.name for gate in bundle.manifest.gates if gate.outcome not in ("ok", "allowed")]
    rest = [name for name in names if name not in elsewhere.settled]
    if rest:
        what = f"{bundle.folder} did not pass its gates, and {verdict} has no measurement for {', '.join(rest)}"
        raise VerificationError(f"{what}; {why}" if why else what, again)
    manifest = _measured_manifest(bundle.manifest, elsewhere)
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
    """Yield the bundles to release: with the measurements of their verdicts, or unchanged without a verdict.

    Raises:
        IntegrityError: a verdict belongs to none of the bundles.
        UsageError: two verdicts belong to one bundle.
        EdgeqError: as `settled_bundle`.
    """
    left: dict[str, Path] = {}
    for path in verdicts:
        other = left.setdefault(load_verdict(path).bundle, path)
        if other is not path:
            what = f"{other} and {path} are both verdicts for one bundle, but only one device can count"
            raise UsageError(
                what, "give only the slower device's verdict; compare them with: edgeq verify BUNDLE --verdict FILE"
            )
    with contextlib.ExitStack() as stack:
        places = []
        for folder in folders:
            verdict = left.pop(read_bundle(folder).digest, None) if left else None
            as_it_is = Settled(folder=folder, gates=(), device="")
            places.append(stack.enter_context(settled_bundle(folder, verdict)) if verdict else as_it_is)
        for digest, path in left.items():
            what = f"{path} is the verdict for bundle {digest}, which is not among the given bundles"
            raise IntegrityError(what, "omit this --verdict, or add its bundle")
        yield tuple(places)


def _gates_text(gates: Sequence[Gate]) -> str:
    return "; ".join(": ".join(filter(None, (f"{one.name} {one.measured} ({one.limit})", one.detail))) for one in gates)


def _measured_manifest(manifest: Manifest, elsewhere: JudgedMeasurement) -> Manifest:
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


# --- What a verdict.json says of a bundle: measured elsewhere, judged here, gate by gate.


Gates = tuple[Gate, ...]

# a device's own measurements; all else is judged where the data and the float model are
_TIMED: tuple[LimitName, ...] = ("latency", "peak_memory", "load")

# the packages whose versions stand for the runtimes
RUNTIME_PACKAGES = {
    "executorch": "executorch",
    "torchscript": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
    "cuda": "torch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedMeasurement:
    """A verdict, judged.

    Attributes:
        measures: the device's times.
        emulation: its golden outputs against those of the bundle.
        gates: the gates of these outputs.
        settled: the bundle's own gates, by name, that are measured now, as they come out; one that failed when the
            bundle was packaged stays failed, and is not among them.
        unsettled: why other unverified gates have no measurement, by name.
    """

    measures: DeviceMeasures
    emulation: Emulation
    gates: Gates
    settled: Mapping[str, Gate]
    unsettled: Mapping[str, str]

    @property
    def failed(self) -> Gates:
        """The gates that the measurements fail."""
        return tuple(gate for gate in (*self.gates, *self.settled.values()) if gate.outcome == "failed")


def read_verdict(path: Path, bundle: Bundle) -> Verdict:
    """Return the verdict in a file, which must belong to this bundle.

    Raises:
        UsageError: the file cannot be read.
        IntegrityError: it is not a verdict, of another bundle, or of another runtime than the bundle's.
        UnsupportedError: a newer edgeq wrote it.
    """
    verdict = load_verdict(path)
    if verdict.bundle != bundle.digest:
        what = f"{path} is the verdict for bundle {verdict.bundle}, but {bundle.folder} is {bundle.digest}"
        raise IntegrityError(what, "measure this bundle: edgeq verify BUNDLE --write-verdict FILE")
    runtime = bundle.manifest.target.runtime
    if verdict.run.runtime.partition(" ")[0] != RUNTIME_PACKAGES[runtime]:
        what = f"{path} was measured in {verdict.run.runtime}, but the bundle is for {runtime}"
        raise IntegrityError(what, "measure again: edgeq verify BUNDLE --write-verdict FILE")
    return verdict


def load_verdict(path: Path) -> Verdict:
    """Return the verdict in a file, for any bundle.

    Raises:
        UsageError: the file cannot be read.
        IntegrityError: it is not a verdict.
        UnsupportedError: a newer edgeq wrote it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_VERDICT_BYTES + 1)
    except OSError as err:
        what = f"cannot read the verdict {path}: {err.strerror}"
        raise UsageError(what, "give the file that `edgeq verify --write-verdict` wrote") from err
    return parse_verdict(data, str(path))


def judge(bundle: Bundle, golden: GoldenSet, verdict: Verdict) -> JudgedMeasurement:
    """Evaluate the gates for which a verdict has measurements; the verdict's own statements are never used as outcomes.

    That is latency, load time and peak memory, where the device is of the target's kind, and what the device computed
    for the golden samples, where it has the target's architecture. Accuracy, sizes and hashes are never taken from it.
    """
    manifest = bundle.manifest
    measures, outputs = measures_of(verdict), _outputs(verdict)
    sums, findings = _compared(golden.outputs, outputs)
    samples = len(golden.outputs[0])
    comparable = sums.elements > 0
    agreement = Agreement(
        left="golden",
        right=measures.device,
        samples=samples,
        max_abs=sums.max_abs if comparable else math.nan,
        max_steps=None,
        sqnr_db=sums.sqnr_db,
        differing=sums.differing / sums.elements if comparable else 1.0,
        top1_flips=sums.ranked - sums.agreeing if sums.ranked else None,
        ranked=sums.ranked,
    )
    run = DeviceRun(
        cpu=measures.device,
        runtime=measures.runtime,
        features=(),
        samples=samples,
        host=agreement,
        fp32=None,
        score=None,
        host_score=None,
        fp32_score=None,
        scored=0,
        rescored=None,
        drop_pp=None,
        findings=findings,
    )
    seen = VerifyReport(
        host=measures.device,
        outputs=tuple(
            TensorSpec(name=f"output{i}", dtype=str(array.dtype), shape=array.shape) for i, array in enumerate(outputs)
        ),
        findings=findings,
        device=measures,
    )
    fits = measures.arch == manifest.target.arch
    gates = _gates(manifest, golden, outputs, seen, run) if fits else _unfit(manifest, measures)
    # hold the device's times to the limits that the bundle was packaged with and that nobody measured
    asked = {gate.name: gate.bound for gate in bundle.manifest.gates if gate.bound is not None}
    limits = tuple((name, float(asked[name])) for name in _TIMED if name in asked)
    download_bytes = download_size_bytes(bundle.folder) if "download" in dict(limits) else 0
    settled, unsettled = _sorted_out(
        manifest, (*gates, *limit_gates(bundle, seen, GateOptions(limits=limits), download_bytes=download_bytes))
    )
    return JudgedMeasurement(
        measures=measures,
        emulation=Emulation(emulator=measures.device, runs=(run,)),
        gates=gates,
        settled=settled,
        unsettled=unsettled,
    )


def _sorted_out(manifest: Manifest, found: Gates) -> tuple[dict[str, Gate], dict[str, str]]:
    """Return the bundle's own gates that are settled now, and why those are not that nobody has measured."""
    own = {gate.name: gate for gate in found}
    settled, unsettled = {}, {}
    for gate in manifest.gates:
        judged = own.get(gate.name)
        if judged is not None and judged.outcome != "unverified" and gate.outcome != "failed":
            settled[gate.name] = judged
        elif gate.outcome in ("unverified", "allowed"):
            unsettled[gate.name] = judged.detail if judged else _no_measurement(gate.name)
    return settled, unsettled


def _no_measurement(name: str) -> str:
    return "the manifest has no number for its limit" if name in _TIMED else "a device does not measure this gate"


def measures_of(verdict: Verdict) -> DeviceMeasures:
    """Return a verdict's times in the form of a device's that was reached from here."""
    device, run = verdict.device, verdict.run
    return DeviceMeasures(
        device=device.name,
        platform=device.platform,
        os=device.os,
        arch=device.arch,
        cores=device.cores,
        is_virtual=device.is_virtual,
        runtime=run.runtime,
        threads=run.threads,
        warmup=run.warmup,
        runs=len(run.latencies_ms),
        p50_ms=percentile_ms(run.latencies_ms, 0.5),
        p90_ms=percentile_ms(run.latencies_ms, 0.9),
        load_ms=run.load_ms,
        peak_memory_bytes=run.peak_memory_bytes,
        latencies_ms=run.latencies_ms,
    )


def _outputs(verdict: Verdict) -> Outputs:
    return tuple(
        np.frombuffer(output.raw, np.dtype(output.dtype).newbyteorder("<")).reshape(output.shape)
        for output in verdict.outputs
    )


def _compared(expected: Outputs, came: Outputs) -> tuple[Comparison, tuple[str, ...]]:
    """Compare the device's golden outputs with the bundle's, and name what is wrong with them whatever the limits."""
    sums = Comparison()
    left, right = ([(array.dtype.name, array.shape) for array in side] for side in (expected, came))
    if left != right:
        return sums, (f"the golden outputs are {left}, but the device gave {right}",)
    sums.add(expected, came)
    return sums, tuple(infinity_findings(came, expected, "the golden samples") or _constants(expected, came))


def _constants(expected: Outputs, came: Outputs) -> list[str]:
    """Name outputs that are the same for all golden samples, where the bundle's are not."""
    return [
        f"output{i} is constant, unlike the golden output"
        for i, (left, right) in enumerate(zip(expected, came, strict=True))
        if (right == right[:1]).all() and not (left == left[:1]).all()
    ]


def _gates(manifest: Manifest, golden: GoldenSet, outputs: Outputs, seen: VerifyReport, run: DeviceRun) -> Gates:
    """Hold the device to the bundle's golden outputs: the host's, an emulated core's, or the converted graph's."""
    told = golden_gate(compare_golden(golden, dataclasses.replace(golden, outputs=outputs)))
    same = dataclasses.replace(told, name=f"golden on {run.cpu}")
    if not _is_graphs(manifest):
        return device_gate(manifest.scheme, Emulation(emulator=run.cpu, runs=(run,))), same
    host = run.host
    parity = Parity(
        samples=host.samples,
        max_abs=host.max_abs,
        max_steps=None,
        sqnr_db=host.sqnr_db,
        differing=host.differing,
        near_ties=host.near_ties,
    )
    return parity_gate(manifest.scheme, parity), outputs_gate(seen), same


def _unfit(manifest: Manifest, measures: DeviceMeasures) -> Gates:
    """Return the same gates where the device has another architecture, and so other kernels."""
    why = (
        f"measured on {measures.device}, which is {measures.arch}: its kernels differ from those of "
        f"{manifest.target.arch}"
    )
    names = ("parity", "outputs") if _is_graphs(manifest) else ("device",)
    return tuple(unverified(name, "equal to the golden outputs", why) for name in names)


def _is_graphs(manifest: Manifest) -> bool:
    return manifest.golden.made_by == "graph"
