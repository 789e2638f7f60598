"""What a verdict.json says of a bundle: measured elsewhere, judged here, gate by gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import (
    Agreement,
    DeviceMeasures,
    DeviceRun,
    Emulation,
    Gate,
    GoldenSet,
    Parity,
    TensorSpec,
    VerifyReport,
)
from edgeq.errors import IntegrityError, UsageError
from edgeq.job import GateOptions
from edgeq.manifest import Manifest
from edgeq.scheme import LimitName
from edgeq.verdict import MAX_VERDICT_BYTES, Verdict, parse_verdict

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.verify.metrics import Comparison, Outputs

Gates = tuple[Gate, ...]

# a device's own measurements; all else is judged where the data and the float model are
_TIMED: tuple[LimitName, ...] = ("latency", "peak_memory", "load")
# the packages whose versions stand for the runtimes
RUNTIME_PACKAGES = {"executorch": "executorch", "torchscript": "torch", "onnx": "onnxruntime", "cuda": "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A verdict, judged.

    Attributes:
        measures: the device's times.
        emulation: its golden outputs against those of the bundle.
        gates: what these outputs are held to.
        settled: the bundle's own gates, by name, that are measured now, as they come out; one that failed when the
            bundle was packaged stays failed, and is not among them.
        unsettled: why those are not that nobody has measured yet, by name.
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
    """Return the verdict in a file, which must be about this bundle.

    Raises:
        UsageError: the file cannot be read.
        IntegrityError: it is no verdict, of another bundle, or of another runtime than the bundle's.
        UnsupportedError: a newer edgeq wrote it.
    """
    verdict = load_verdict(path)
    if verdict.bundle != bundle.digest:
        what = f"{path} is the verdict on the bundle {verdict.bundle}, and {bundle.folder} is {bundle.digest}"
        raise IntegrityError(what, "measure this very bundle: edgeq verify BUNDLE --write-verdict FILE")
    runtime = bundle.manifest.target.runtime
    if verdict.run.runtime.partition(" ")[0] != RUNTIME_PACKAGES[runtime]:
        what = f"{path} was measured in {verdict.run.runtime}, and the bundle is for {runtime}"
        raise IntegrityError(what, "measure again: edgeq verify BUNDLE --write-verdict FILE")
    return verdict


def load_verdict(path: Path) -> Verdict:
    """Return the verdict in a file, of whatever bundle.

    Raises:
        UsageError: the file cannot be read.
        IntegrityError: it is no verdict.
        UnsupportedError: a newer edgeq wrote it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_VERDICT_BYTES + 1)
    except OSError as err:
        what = f"cannot read the verdict {path}: {err.strerror}"
        raise UsageError(what, "give the file that `edgeq verify --write-verdict` wrote") from err
    return parse_verdict(data, str(path))


def judge(bundle: Bundle, golden: GoldenSet, verdict: Verdict) -> Elsewhere:
    """Evaluate from a verdict's measurements what they can settle; nothing that it says is taken for an outcome.

    That is latency, load time and peak memory, where the device is of the target's kind, and what the device computed
    for the golden samples, where it has the target's architecture. Accuracy, sizes and hashes are never taken from it.
    """
    manifest = bundle.manifest
    measures, outputs = measures_of(verdict), _outputs(verdict)
    sums, findings = _compared(golden.outputs, outputs)
    run = _run(measures, sums, findings, len(golden.outputs[0]))
    seen = _seen(measures, outputs, findings)
    fits = measures.arch == manifest.target.arch
    gates = _gates(manifest, golden, outputs, seen, run) if fits else _unfit(manifest, measures)
    settled, unsettled = _sorted_out(manifest, (*gates, *_timed(bundle, seen)))
    return Elsewhere(
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
    return "the manifest has no number for its limit" if name in _TIMED else "no device's to say"


def measures_of(verdict: Verdict) -> DeviceMeasures:
    """Return a verdict's times in the form of a device's that was reached from here."""
    from edgeq.verify.metrics import percentile_ms

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
    import numpy as np

    return tuple(
        np.frombuffer(output.raw, np.dtype(output.dtype).newbyteorder("<")).reshape(output.shape)
        for output in verdict.outputs
    )


def _compared(expected: Outputs, came: Outputs) -> tuple[Comparison, tuple[str, ...]]:
    """Compare the device's golden outputs with the bundle's, and name what is wrong with them whatever the limits."""
    import numpy as np

    from edgeq.verify.metrics import Comparison

    sums = Comparison()
    left, right = ([(array.dtype.name, array.shape) for array in side] for side in (expected, came))
    if left != right:
        return sums, (f"the golden outputs are {left}, the device gave {right}",)
    sums.add(expected, came)
    findings = [
        f"output{i} holds NaN or Inf"
        for i, array in enumerate(came)
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    return sums, tuple(findings or _constants(expected, came))


def _constants(expected: Outputs, came: Outputs) -> list[str]:
    """Name outputs that are the same for all golden samples, where the bundle's are not."""
    return [
        f"output{i} is constant, while the golden one is not"
        for i, (left, right) in enumerate(zip(expected, came, strict=True))
        if (right == right[:1]).all() and not (left == left[:1]).all()
    ]


def _run(measures: DeviceMeasures, sums: Comparison, findings: tuple[str, ...], samples: int) -> DeviceRun:
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
    return DeviceRun(
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


def _seen(measures: DeviceMeasures, outputs: Outputs, findings: tuple[str, ...]) -> VerifyReport:
    return VerifyReport(
        host=measures.device,
        outputs=tuple(
            TensorSpec(name=f"output{i}", dtype=str(array.dtype), shape=array.shape) for i, array in enumerate(outputs)
        ),
        findings=findings,
        device=measures,
    )


def _gates(manifest: Manifest, golden: GoldenSet, outputs: Outputs, seen: VerifyReport, run: DeviceRun) -> Gates:
    """Hold the device to the bundle's golden outputs: the host's, an emulated core's, or the converted graph's."""
    from edgeq.check.device import device_gate
    from edgeq.check.gates import outputs_gate, parity_gate
    from edgeq.pipeline.promises import golden_gate

    told, _ = golden_gate(golden, dataclasses.replace(golden, outputs=outputs))
    same = dataclasses.replace(told, name=f"golden on {run.cpu}")
    if not _is_graphs(manifest):
        return device_gate(manifest.scheme, Emulation(emulator=run.cpu, runs=(run,))), same
    host = run.host
    parity = Parity(
        samples=host.samples, max_abs=host.max_abs, max_steps=None, sqnr_db=host.sqnr_db, differing=host.differing
    )
    return parity_gate(manifest.scheme, parity), outputs_gate(seen), same


def _unfit(manifest: Manifest, measures: DeviceMeasures) -> Gates:
    """Return the same gates where the device has another architecture, and so other kernels."""
    from edgeq.check.outcome import unverified

    why = f"measured on {measures.device}, which is {measures.arch}: other kernels than those of {manifest.target.arch}"
    names = ("parity", "outputs") if _is_graphs(manifest) else ("device",)
    return tuple(unverified(name, "as the golden outputs", why) for name in names)


def _is_graphs(manifest: Manifest) -> bool:
    return manifest.golden.made_by == "graph"


def _timed(bundle: Bundle, verified: VerifyReport) -> Gates:
    """Hold the device's times to the limits that the bundle was packaged with and that nobody measured."""
    from edgeq.pipeline.limits import limit_gates

    asked = {gate.name: gate.bound for gate in bundle.manifest.gates if gate.bound is not None}
    limits = tuple((name, float(asked[name])) for name in _TIMED if name in asked)
    return limit_gates(bundle, verified, GateOptions(limits=limits))
