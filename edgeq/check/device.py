"""The gate of the device's own kernels: their outputs must equal the host's."""

from __future__ import annotations

import math

from edgeq.check.gate import decibels, unverified
from edgeq.core.errors import ExitCode
from edgeq.core.manifest import CudaBox
from edgeq.core.results.measured import Agreement, DeviceRun, Emulation, Gpu, VerifyReport
from edgeq.core.results.report import Gate
from edgeq.core.schemes import FLOAT_SCHEMES, MAX_STEPS, deep_sqnr_db, least_sqnr_db
from edgeq.core.units import counted


def box_gate(box: CudaBox, torch: str, gpu: Gpu | None) -> Gate:
    """Check a GPU machine against an artifact's requirements (exit code 3); without a GPU, only torch counts.

    Args:
        box: the requirements in the manifest.
        torch: the version on the machine.
        gpu: the GPU that torch reports there.
    """
    why = _misfit(box, torch, gpu)
    on = f"{gpu.name}, compute capability {gpu.capability}, CUDA {gpu.cuda}" if gpu else "no GPU"
    compiled = f", compiled for compute capability {box.compiled_for} and CUDA {box.cuda}" if box.compiled_for else ""
    least = f", compute capability {box.least_capability} or newer" if box.least_capability else ""
    return Gate(
        name="box",
        outcome="failed" if why else "ok",
        limit=f"torch {box.torch} or newer{least}{compiled}",
        measured=f"torch {torch}, {on}",
        detail=why,
        exit_code=ExitCode.UNSUPPORTED,
    )


def _misfit(box: CudaBox, torch: str, gpu: Gpu | None) -> str:
    """Return why an artifact does not run on a box; "" where it does."""
    if _version(torch) < _version(box.torch):
        return "an older torch may not load it: update torch on the machine, or package with the machine's torch"
    if gpu is None:
        return ""
    if box.least_capability and _version(gpu.capability) < _version(box.least_capability):
        return "the GPU is too old for the arithmetic of this scheme: package with --scheme storage-fp16 or fp32"
    if box.compiled_for is None:
        return ""
    if gpu.capability != box.compiled_for:
        return (
            "the artifact was compiled for another GPU: package again on a GPU like this one, or on a host "
            "without a GPU"
        )
    if gpu.cuda != box.cuda or _version(torch) != _version(box.torch):
        return "the artifact was compiled with another torch or CUDA version: package again with the machine's versions"
    return ""


def _version(text: str) -> tuple[int, int]:
    major, minor = [*text.split("."), "0"][:2]
    return int(major), int(minor)


DEVICE_GATE = "device"


def device_gates(scheme: str, verified: VerifyReport) -> tuple[Gate, ...]:
    """Return the gate of the emulated runs; none where nothing was emulated."""
    if verified.emulation is None:
        return ()
    reaction_db = verified.parity.reaction_db if verified.parity and scheme not in FLOAT_SCHEMES else None
    return (device_gate(scheme, verified.emulation, reaction_db),)


def device_gate(scheme: str, emulation: Emulation, reaction_db: float | None = None) -> Gate:
    """Compare the emulated runs with the host's run of the same artifact (exit code 7).

    The outputs must be finite, have the host's shapes, and differ by at most one quantization step. Where no output is
    quantized, or the scheme computes in float, the signal-to-difference ratio must reach the thresholds of lowering
    parity.

    Args:
        scheme: the quantization scheme.
        emulation: the runs.
        reaction_db: how far one int8 step at the input moves the graph itself, where that is known: a deep int8 model
            that amplifies rounding passes if the runs differ about as little (`deep_sqnr_db`).
    """
    if emulation.problem:
        if emulation.is_unmeasured:
            return unverified(DEVICE_GATE, "as on the host", emulation.problem)
        return Gate(
            name=DEVICE_GATE,
            outcome="failed",
            limit="as on the host",
            measured="",
            detail=emulation.problem,
            exit_code=emulation.exit_code,
        )
    failed = [(run, why) for run in emulation.runs if (why := _why(run, scheme, reaction_db))]
    worst = min(emulation.runs, key=lambda run: _order(run.host))
    return Gate(
        name=DEVICE_GATE,
        outcome="failed" if failed else "ok",
        limit="<= 1 step from the host" if _by_steps(worst.host, scheme) else f">= {least_sqnr_db(scheme):.0f} dB",
        measured=_measured(worst.host, scheme),
        detail="; ".join(f"{run.name}: {why}" for run, why in failed) or _result_text(emulation),
        exit_code=ExitCode.VERIFICATION,
    )


def _why(run: DeviceRun, scheme: str, reaction_db: float | None) -> str:
    """Return what is wrong with a run; "" where nothing is."""
    if run.findings:
        return "; ".join(run.findings)
    if run.next_tokens is not None and run.next_tokens[0] < run.next_tokens[1]:
        return f"{run.next_tokens[0]} of {run.next_tokens[1]} next tokens are the host's"
    host = run.host
    if _by_steps(host, scheme) and host.max_steps is not None and host.max_steps <= MAX_STEPS:
        return ""
    if not _by_steps(host, scheme) and (host.near_ties or host.sqnr_db >= least_sqnr_db(scheme)):
        return ""
    if reaction_db is not None and host.sqnr_db >= deep_sqnr_db(reaction_db):
        return ""
    return f"{_measured(host, scheme)} against the host over {counted(host.samples, 'sample')}{_flips(host)}"


def _by_steps(host: Agreement, scheme: str) -> bool:
    return host.max_steps is not None and scheme not in FLOAT_SCHEMES


def _order(host: Agreement) -> float:
    return -math.inf if math.isnan(host.sqnr_db) else host.sqnr_db


def _measured(host: Agreement, scheme: str) -> str:
    if host.sqnr_db == math.inf:
        return "equal"
    if host.max_steps is not None and scheme not in FLOAT_SCHEMES and not math.isnan(host.sqnr_db):
        return f"{counted(host.max_steps, 'step')}, {decibels(host.sqnr_db)}"
    return decibels(host.sqnr_db)


def _flips(host: Agreement) -> str:
    return f", {host.top1_flips} top-1 flips" if host.top1_flips else ""


def _result_text(emulation: Emulation) -> str:
    """Name the machines, those that equal the host's run first."""
    equal = [run for run in emulation.runs if run.host.sqnr_db == math.inf]
    parts = [f"equal on {', '.join(run.name for run in equal)}"] if equal else []
    parts += [
        f"{run.name}: {run.host.differing:.2%} of outputs differ, by at most {run.host.max_abs:.3g}{_flips(run.host)}"
        for run in emulation.runs
        if run not in equal
    ]
    return f"{'; '.join(parts)}, over {counted(emulation.runs[0].samples, 'sample')}"
