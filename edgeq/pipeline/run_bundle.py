"""What running a bundle's artifact on this host shows, beside what its manifest and golden samples say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeq.artifacts import Gate, GoldenSet, LoweredModel, VerifyReport
from edgeq.errors import EdgeqError, UnsupportedError, VerificationError
from edgeq.job import Progress
from edgeq.machine import host_arch
from edgeq.manifest import Manifest
from edgeq.pipeline import promises, verify_gpu
from edgeq.pipeline.evaluation import TOP1, Evaluation, input_specs
from edgeq.pipeline.golden import golden_dataset, run_golden
from edgeq.pipeline.promises import GoldenComparison, ScoreComparison
from edgeq.samples import Batch, Dataset
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.verify_device import DeviceSetting
    from edgeq.verify.host import HostRuntime, Loaded
    from edgeq.verify.metrics import Outputs
    from edgeq.verify.spec import VerifySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What running the artifact showed, and the gates and remarks that follow from it.

    Attributes:
        outputs: for the golden samples, [samples, …] each, of the real device, or else of this host.
    """

    gates: tuple[Gate, ...]
    verified: VerifyReport
    notes: tuple[str, ...] = ()
    golden: GoldenComparison | None = None
    score: ScoreComparison | None = None
    outputs: Outputs = ()


def run_bundle(
    bundle: Bundle,
    golden: GoldenSet,
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting | None,
    progress: Progress,
    *,
    serving_s: float | None,
) -> Seen:
    """Run the golden samples first: a limit is on a cold load, as `edgeq package` measures it, not on a second one.

    `serving_s` is how long serving them on the GPU may take; None where that is not asked for.
    """
    why = why_not_run(bundle.manifest.target.backend)
    if why:
        return _not_run("nothing", promises.elsewhere_gate(why))
    box = verify_gpu.box_gates(bundle.manifest, runtime)
    if not all(gate.passed for gate in box):
        return _not_run(f"host {host_arch()}", *box)
    try:
        seen = _run(bundle, golden, evaluation, runtime, setting, progress)
        gates, verified = (*box, *seen.gates), seen.verified
        if serving_s is not None:
            gate, measures = verify_gpu.served(bundle, golden, timeout_s=serving_s)
            gates, verified = (*gates, gate), dataclasses.replace(verified, device=measures)
        return dataclasses.replace(seen, gates=gates, verified=verified)
    except (VerificationError, UnsupportedError) as err:
        return _not_run(f"host {host_arch()}", _why_not(bundle, runtime, err))


def _run(
    bundle: Bundle,
    golden: GoldenSet,
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting | None,
    progress: Progress,
) -> Seen:
    from edgeq.check.gates import outputs_gate
    from edgeq.pipeline.verify_device import on_device
    from edgeq.verify.run import verify

    manifest, samples = bundle.manifest, golden_dataset(bundle, golden)
    verified, _ = verify(_spec(bundle, samples, progress, "golden samples"), runtime)
    golden_runs = run_golden(manifest, samples, runtime)
    score = _score(bundle, evaluation, runtime, progress) if evaluation else None
    # TorchScript archives state nothing, and were run on what the manifest says
    takes = _loaded(bundle, runtime).inputs or promises.signature(manifest.inputs)
    device = on_device(bundle, golden, golden_runs, evaluation, runtime, setting) if setting else None
    measured = _measured(manifest, golden_runs)
    golden_gate, compared = promises.golden_gate(golden, measured)
    score_gates, notes = promises.score_gates(score) if score else ((), ())
    verdicts = (
        promises.run_gate(verified),
        promises.signature_gate(manifest, takes, promises.signature(verified.outputs)),
        outputs_gate(verified),
        golden_gate,
        *score_gates,
        *(device.gates if device else ()),
    )
    if device is not None:
        verified = dataclasses.replace(verified, emulation=device.emulation, device=device.measures)
    return Seen(
        gates=verdicts,
        verified=verified,
        notes=notes,
        golden=compared,
        score=score,
        outputs=device.outputs if device else measured.outputs,
    )


def _measured(manifest: Manifest, runs: Sequence[tuple[Batch, Outputs]]) -> GoldenSet:
    from edgeq.verify.golden import golden_set
    from edgeq.verify.rows import of_sample

    taken = [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in runs]
    return golden_set(taken, (), scheme=manifest.scheme)


def _not_run(host: str, *gates: Gate) -> Seen:
    return Seen(gates=gates, verified=VerifyReport(host=host, outputs=(), findings=()))


def _why_not(bundle: Bundle, runtime: HostRuntime, err: VerificationError | UnsupportedError) -> Gate:
    """Return the gate of an artifact that did not run; of inputs that it does not take, the runtime only has codes."""
    manifest = bundle.manifest
    try:
        stated = _loaded(bundle, runtime)
    except EdgeqError:  # a damaged artifact, or a child that crashed: the first error says more
        return promises.not_run_gate(err)
    if stated.inputs and not promises.fits(stated.inputs, promises.signature(manifest.inputs)):
        return promises.signature_gate(manifest, stated.inputs, stated.outputs)
    return promises.not_run_gate(err)


def _loaded(bundle: Bundle, runtime: HostRuntime) -> Loaded:
    target, threads = bundle.manifest.target, bundle.manifest.threads
    return runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=threads)


def _spec(bundle: Bundle, samples: Dataset, progress: Progress, what: str) -> VerifySpec:
    """Return the verify step's input for a bundle, which holds neither the converted graph nor fp32."""
    from edgeq.verify.spec import VerifySpec

    manifest = bundle.manifest
    lowered = LoweredModel(
        path=bundle.artifact,
        runtime=manifest.target.runtime,
        runtime_version=manifest.runtime.exported_with,
        bytecode_version=manifest.runtime.bytecode_version,
        passes=manifest.passes,
        operators=(),
        undelegated=manifest.layers.undelegated,
        layers=(),
        delegated_macs=None,
    )
    return VerifySpec(
        lowered=lowered,
        inputs=input_specs(manifest),
        graph=None,
        fp32=None,
        output_steps=(),
        samples=samples,
        is_evaluation=False,
        metric=None,
        metric_name=TOP1,
        scheme=manifest.scheme,
        backend=manifest.target.backend,
        threads=manifest.threads,
        progress=progress,
        label=f"{manifest.target.name}, {what}",
    )


def _score(bundle: Bundle, evaluation: Evaluation, runtime: HostRuntime, progress: Progress) -> ScoreComparison:
    from edgeq.load.digest import dataset_sha256
    from edgeq.verify.run import verify

    recorded = bundle.manifest.accuracy
    spec = dataclasses.replace(
        _spec(bundle, evaluation.samples, progress, "evaluation data"),
        is_evaluation=True,
        metric=evaluation.metric,
        metric_name=evaluation.metric_name,
        # the times that count are those of the golden samples
        warmup=0,
        runs=1,
    )
    fidelity = verify(spec, runtime)[0].fidelity
    known = recorded.score if recorded is not None and recorded.inputs == "evaluation" else None
    return ScoreComparison(
        metric=evaluation.metric_name,
        samples=evaluation.samples.count,
        score=fidelity.score if fidelity else None,
        recorded=None if known is None else float(known),
        same_data=dataset_sha256(evaluation.samples) == bundle.manifest.provenance.evaluation_sha256,
        same_metric=recorded is not None and recorded.metric == evaluation.metric_name,
    )
