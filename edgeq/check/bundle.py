"""The gates that compare a bundle with its own manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgeq.check.gate import decibels, unverified
from edgeq.check.gates import exit_code_of
from edgeq.check.limits import Measured, instruction_gates, limit_gate
from edgeq.core.config import GateOptions
from edgeq.core.errors import EdgeqError, ExitCode
from edgeq.core.manifest import Bundle, GateVerdict, Manifest, Tensor, measure
from edgeq.core.results.measured import GoldenComparison, ScoreComparison, VerifyReport
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import Gate
from edgeq.core.system import host_arch
from edgeq.core.targets import why_not_run
from edgeq.core.units import counted, format_bytes, format_quantity

Signature = tuple[tuple[str, tuple[int, ...]], ...]

_SAME_SCORE = 1e-9


NOT_RUN = "nothing"  # in place of the host that ran an artifact


def files_gate(bundle: Bundle) -> Gate:
    """Report the files that were read; a file that differs from the manifest is refused before this gate."""
    files = bundle.manifest.files
    size = format_bytes(sum(entry.size_bytes for entry in files))
    return Gate(
        name="files",
        outcome="ok",
        limit="",
        measured=f"{counted(len(files), 'file')}, {size}, as listed",
        detail=f"digest {bundle.digest[:12]}",
        exit_code=ExitCode.INTEGRITY,
    )


def packaged_gates(manifest: Manifest, settled: Mapping[str, Gate] = MappingProxyType({})) -> tuple[Gate, ...]:
    """Return the verdict of the run that packaged the bundle: one gate, or one per gate that failed then.

    Args:
        manifest: the bundle's.
        settled: its gates that were measured since then, by name.
    """
    since = tuple(dataclasses.replace(gate, name=f"packaged:{gate.name}") for gate in settled.values())
    rest = [gate for gate in manifest.gates if gate.name not in settled]
    failed = [gate for gate in rest if gate.outcome not in ("ok", "allowed")]
    if not failed:
        allowed = [gate.name for gate in rest if gate.outcome == "allowed"]
        detail = f"allowed without a measurement: {', '.join(allowed)}" if allowed else ""
        return (
            _gate("packaged", True, "", f"{counted(len(rest), 'gate')} passed when it was packaged", detail),
            *since,
        )
    return since + tuple(
        Gate(
            name=f"packaged:{gate.name}",
            outcome="failed",
            limit=gate.limit,
            measured=f"{gate.outcome} when it was packaged",
            detail=gate.detail or "",
            exit_code=_packaged_code(gate),
        )
        for gate in failed
    )


def _packaged_code(gate: GateVerdict) -> ExitCode:
    """Return what a gate that failed exits with; the manifest does not keep it."""
    return ExitCode.VERIFICATION if gate.outcome == "unverified" else exit_code_of(gate.name)


def run_gate(report: VerifyReport) -> Gate:
    """Report how the artifact ran; `not_run_gate` reports one that did not."""
    timing = report.timing
    facts = [f"loaded in {format_quantity(report.load_ms, 'ms')}"] if report.load_ms is not None else []
    if timing is not None:
        times = f"{format_quantity(timing.p50_ms, 'ms')}, p90 {format_quantity(timing.p90_ms, 'ms')}"
        facts.append(f"p50 {times} of {counted(timing.runs, 'run')}, {counted(timing.threads, 'thread')}")
    if report.peak_memory_bytes is not None:
        facts.append(f"peak memory {format_bytes(report.peak_memory_bytes)}")
    return _gate("run", True, "", f"on {report.host}", "; ".join(facts))


def not_run_gate(err: EdgeqError) -> Gate:
    """Report why the artifact does not load or run, with the exit code of that error."""
    return Gate(name="run", outcome="failed", limit="", measured="", detail=err.what, exit_code=err.exit_code)


def elsewhere_gate(why: str) -> Gate:
    """Report that this host cannot run the artifact (exit code 7, unless --allow-unmeasured names it)."""
    return unverified("outputs", "those of the golden samples", why)


def signature_gate(manifest: Manifest, inputs: Signature, outputs: Signature) -> Gate:
    """Compare dtypes and shapes of the artifact's inputs and outputs with the manifest's (exit code 7)."""
    expected = (signature(manifest.inputs), signature(manifest.outputs))
    same = fits(inputs, expected[0]) and outputs == expected[1]
    limit, came = (
        (f"{_signature_text(left)} -> {_signature_text(right)}") for left, right in (expected, (inputs, outputs))
    )
    return _gate("signature", same, limit, "as in the manifest" if same else came, "" if same else "another one")


def golden_gate(compared: GoldenComparison) -> Gate:
    """Compare this host's outputs for the golden samples with the recorded ones (exit code 7)."""
    facts = [f"max abs difference {compared.max_abs:.3g}"]
    if compared.top1_agreement is not None:
        facts.append(f"top-1 agreement {compared.top1_agreement:.1%}")
    facts.append(counted(compared.samples, "golden sample"))
    if not compared.same_shapes:
        facts = ["the outputs differ in shape from the golden ones"]
    elif not compared.finite:
        facts.insert(0, "NaN or Inf in the outputs, not in both alike")
    measured = decibels(compared.sqnr_db, 2)
    passed = compared.sqnr_db >= compared.sqnr_floor_db and not compared.lost
    facts += [f"lost: {', '.join(compared.lost)}"] if compared.lost else []
    return _gate("golden", passed, f">= {compared.sqnr_floor_db:.2f} dB", measured, "; ".join(facts))


def score_gates(compared: ScoreComparison) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
    """Compare the score with the recorded one (exit code 5), if data and metric are the same.

    Returns:
        The gates (none where there is nothing to compare with), and remarks.
    """
    if compared.score is None:
        why = "the data has no labels, or the first output does not hold class scores; give a --metric"
        return (unverified("score", "as recorded", why),), ()
    score = f"{compared.metric} {compared.score:.4g} over {counted(compared.samples, 'sample')}"
    if compared.recorded is None:
        return (), (f"{score}; the manifest records no score to compare with",)
    if not compared.same_data:
        return (), (
            f"{score}; not compared with the manifest's {compared.recorded:.4g}, which was measured on other data",
        )
    if not compared.same_metric:
        return (), (f"{score}; not compared with the manifest's score, which is of another metric",)
    # the manifest keeps four digits, and so both are compared
    change = float(measure(compared.score)) - compared.recorded
    detail = f"{change:+.2g} against the recorded score" if abs(change) > _SAME_SCORE else "equal to the recorded score"
    gate = Gate(
        name="score",
        outcome="ok" if change >= -_SAME_SCORE else "failed",
        limit=f">= {compared.recorded:.4g}",
        measured=score,
        detail=detail,
        exit_code=ExitCode.ACCURACY,
    )
    return (gate,), ()


def signature(tensors: Sequence[Tensor] | Sequence[TensorSpec]) -> Signature:
    """Return dtype and shape of each tensor."""
    return tuple((tensor.dtype, tensor.shape) for tensor in tensors)


def fits(stated: Signature, expected: Signature) -> bool:
    """Whether an artifact's signature is the expected one; 0 stands for a size that the artifact leaves open."""
    if [(dtype, len(shape)) for dtype, shape in stated] != [(dtype, len(shape)) for dtype, shape in expected]:
        return False
    pairs = zip(stated, expected, strict=True)
    return all(left in (0, right) for one, other in pairs for left, right in zip(one[1], other[1], strict=True))


def _signature_text(tensors: Signature) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in tensors) or "nothing"


def _gate(name: str, passed: bool, limit: str, measured: str, detail: str) -> Gate:
    return Gate(
        name=name,
        outcome="ok" if passed else "failed",
        limit=limit,
        measured=measured,
        detail=detail,
        exit_code=ExitCode.VERIFICATION,
    )


# --- The limits of `edgeq verify`, on a bundle that is finished, and the remarks beside them.


def limit_gates(
    bundle: Bundle, verified: VerifyReport, options: GateOptions, *, download_bytes: int
) -> tuple[Gate, ...]:
    """Check a bundle and its measurements against limits.

    Args:
        bundle: as it lies on disk.
        download_bytes: the size of its ZIP.
        verified: what running it showed, here or elsewhere.
        options: the limits, the shipped bundle, and what may stay unmeasured.
    """
    npu = bundle.manifest.npu
    measured = Measured(
        size_bytes=bundle.manifest.size_bytes,
        download_bytes=download_bytes,
        verified=verified,
        limit_on=options.limit_on,
        host_arch=host_arch(),
        target_arch=bundle.manifest.target.arch,
        target_platform=bundle.manifest.target.platform,
        threads=bundle.manifest.threads,
        sram_bytes=npu.sram_bytes + npu.planned_bytes if npu else None,
        cycles=npu.cycles if npu else None,
    )
    judged = [limit_gate(name, limit, measured) for name, limit in options.limits]
    judged += instruction_gates(options.shipped, verified)
    return tuple(settled(gate, options) for gate in judged)


def settled(gate: Gate, options: GateOptions) -> Gate:
    """Let an unmeasured gate pass if --allow-unmeasured names it."""
    if gate.name == "accuracy_drop":
        gate = dataclasses.replace(gate, detail="a bundle holds no fp32 model; package again with this limit")
    allowed = gate.outcome == "unverified" and gate.name in options.allow_unmeasured
    return dataclasses.replace(gate, outcome="allowed") if allowed else gate


def remarks(manifest: Manifest, verified: VerifyReport) -> tuple[str, ...]:
    """Report where a bundle was run, if not on its device, and what prevents its release."""
    said = []
    if why_not_run(manifest.target.backend) or (verified.emulation is not None and verified.emulation.runs):
        pass
    elif verified.host == NOT_RUN:
        said.append("nothing was run: the golden samples were not compared")
    elif verified.stand_in:
        said.append(verified.stand_in)
    elif manifest.target.platform in ("android", "ios"):
        said.append(f"run on the host's kernels ({host_arch()}), not the phone's")
    elif manifest.target.arch != host_arch():
        said.append(f"run on the host's kernels ({host_arch()}), not those of {manifest.target.arch}")
    if manifest.model.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    return tuple(said)
