"""The emulated part of the verify step: the artifact on each CPU model, against the host's run, fp32 and each other."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.config import Progress, Task
from edgeq.core.errors import UnsupportedError, VerificationError
from edgeq.core.lazy import np
from edgeq.core.results.artifact import Observed
from edgeq.core.results.measured import Agreement, DeviceRun, Emulation
from edgeq.core.samples import Batch, Outputs, Sample
from edgeq.core.schemes import FLOAT_SCHEMES
from edgeq.core.targets import NPU
from edgeq.verify.accumulate import GOLDEN_SAMPLES, batch_scores, chosen_metric, infinity_findings
from edgeq.verify.drift import says_the_same
from edgeq.verify.emulate.runner import Launcher, TooSlow, Work, run_all, usable_cores
from edgeq.verify.emulate.selftest import Machine, Npu
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import (
    Comparison,
    Metric,
    SetMetric,
    cut,
    mean_score,
    metric_drop_pp,
    of_sample,
    real_rows,
    sequences_of,
)

# --- The part of the samples that is emulated, with what the host and fp32 made of it.


# mobilenet_v2 at 224 x 224 has 300 million multiply-accumulates: 16 samples of it, or a hundred small ones
_INT8_MACS = 4.8e9

_FLOAT_FACTOR = 8  # float kernels take that much longer under QEMU, which emulates floating point in software

_LEAST, _MOST = 4, 128

_SAME_ROW = 1e-3  # of what a metric of the whole set makes of a sample

_UNKNOWN = 16


def subset_size(macs: int, scheme: str) -> int:
    """Return how many samples to emulate: a few of a large model, many of a small one.

    It depends on the model only, not on the machine, so that equal inputs give an equal bundle.

    Args:
        macs: multiply-accumulates of one inference; 0 where they are not known.
        scheme: the quantization scheme.
    """
    if macs == 0:
        return _UNKNOWN
    budget = _INT8_MACS / _FLOAT_FACTOR if scheme in FLOAT_SCHEMES else _INT8_MACS
    return min(_MOST, max(_LEAST, int(budget // macs)))


class Subset:
    """Keeps the first batches, for the golden samples, and more that are spread evenly: data are often sorted."""

    def __init__(self, *, count: int, rows: int, limit: int, first: int) -> None:
        """Prepare for the batches of one dataset.

        Args:
            count: samples in the dataset.
            rows: of them in a batch.
            limit: samples to keep, about.
            first: batches to keep from the beginning.
        """
        self._first = first
        self._later = max(1, -(-count // rows) - first)  # batches after those
        self._wanted = max(0, min(self._later, limit // rows - first))
        self._seen = 0
        self.observed: list[Observed] = []

    def keep(self, batch: Batch, host: Outputs, fp32: Outputs | None) -> None:
        """Take a batch that belongs to no dataset, before all others; it is not scored."""
        self.observed.append(Observed(batch=batch, host=host, fp32=fp32, scored=False))

    def keeps(self, index: int) -> bool:
        """Whether batch `index` of the dataset belongs to the subset."""
        later = index - self._first
        return later < 0 or (later + 1) * self._wanted // self._later > later * self._wanted // self._later

    def __call__(self, batch: Batch, host: Outputs, fp32: Outputs | None) -> None:
        """Take or skip the next batch of the dataset."""
        index, self._seen = self._seen, self._seen + 1
        if self.keeps(index):
            self.observed.append(Observed(batch=batch, host=host, fp32=fp32))


HOST = "host"

Pair = tuple[Batch, Outputs, Outputs]

Golden = tuple[tuple[Sample, Outputs], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulateSpec:
    """Input of the emulated verification.

    Attributes:
        artifact: the file on disk.
        machines: runtimes on CPU models, each tested, or NPUs of SoCs.
        emulator: what runs them: QEMU with its version, `native`, or a device.
        observed: the subset, with the outputs of the host and of fp32.
        output_steps: quantization steps of the outputs, where known.
        metric: a score per sample, or None for top-1.
        labelled: whether the samples have labels, or a metric of the user's own scores them.
        label: text for progress.
        scheme: the quantization scheme, which says how far two runs may differ.
        threads: of the runtime; under QEMU one is the fastest.
        launcher: starts the runners, one at a time; None for this host.
    """

    artifact: Path
    machines: tuple[Machine, ...] | tuple[Npu, ...]
    emulator: str
    observed: tuple[Observed, ...]
    output_steps: tuple[float | None, ...]
    metric: Metric | SetMetric | None
    labelled: bool
    timeout_s: float
    progress: Progress
    label: str
    scheme: str
    threads: int = 1
    launcher: Launcher | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """The results of emulation.

    Attributes:
        golden: for each machine the first samples with its outputs, for a device's self-test; none where nothing ran,
            or outputs are invalid.
    """

    report: Emulation
    golden: tuple[Golden, ...]


def emulate(spec: EmulateSpec) -> Emulated:
    """Run the sub-set on every machine and compare.

    An artifact that does not load there, crashes the runtime or exceeds the time limit gives a report of that.

    Raises:
        UsageError: the metric fails, or the inputs do not fit.
        EnvironmentProblem: QEMU or the ARM64 C library is missing.
    """
    try:
        outputs = _outputs(spec)
    except (VerificationError, UnsupportedError) as err:
        slow = isinstance(err, TooSlow)
        report = Emulation(
            emulator=spec.emulator, runs=(), problem=err.what, exit_code=err.exit_code, is_unmeasured=slow
        )
        return Emulated(report=report, golden=())
    machines: Sequence[Machine | Npu] = spec.machines
    runs = tuple(_device_run(spec, machine, *found) for machine, found in zip(machines, outputs, strict=True))
    named = [(run.name, outs) for run, (outs, _) in zip(runs, outputs, strict=True)]
    between = tuple(
        _agreement(one, other, _pairs(spec.observed, left, right), spec.output_steps)
        for (one, left), (other, right) in itertools.combinations(named, 2)
    )
    sound = not any(run.findings for run in runs)
    golden = tuple(_golden(spec.observed, outs) for outs, _ in outputs) if sound else ()
    return Emulated(report=Emulation(emulator=spec.emulator, runs=runs, between=between), golden=golden)


def _outputs(spec: EmulateSpec) -> list[tuple[list[Outputs], tuple[str, ...]]]:
    """Return each machine's outputs, one for each observed batch, and its features."""
    cpus = [machine for machine in spec.machines if isinstance(machine, Machine)]
    npus = [machine for machine in spec.machines if isinstance(machine, Npu)]
    total = len(spec.machines) * len(spec.observed)
    names = ", ".join(machine.cpu_name for machine in spec.machines)
    with spec.progress.task(f"{'run' if spec.launcher else 'emulate'} {spec.label} on {names}", total) as task:
        return _outputs_of_npus(spec, npus, task) if npus else _outputs_of_cpus(spec, cpus, task)


def _outputs_of_cpus(
    spec: EmulateSpec, cpus: Sequence[Machine], task: Task
) -> list[tuple[list[Outputs], tuple[str, ...]]]:
    """Run each machine's share in several processes."""
    in_order = any(one.continues or one.golden for one in spec.observed)
    parts = 1 if spec.launcher or in_order else max(1, usable_cores() // len(cpus))
    shares = [share for share in np.array_split(np.arange(len(spec.observed)), parts) if len(share)]
    works = [_work(spec, cpu, share.tolist()) for cpu in cpus for share in shares]
    parallel = 1 if spec.launcher else None
    ran = run_all(works, timeout_s=spec.timeout_s, parallel=parallel, on_sample=task.advance, launcher=spec.launcher)
    grouped = [ran[i : i + len(shares)] for i in range(0, len(ran), len(shares))]
    return [([outputs for one in group for outputs in one.outputs], group[0].core.features) for group in grouped]


def _outputs_of_npus(spec: EmulateSpec, npus: Sequence[Npu], task: Task) -> list[tuple[list[Outputs], tuple[str, ...]]]:
    """Compile and run the artifact for one SoC after another, in a process that may crash."""
    deadline = time.monotonic() + spec.timeout_s
    made: list[list[Outputs]] = []
    with HostRuntime() as runtime:
        for npu in npus:
            backend = f"{NPU}/{npu.soc.name}"
            runtime.load(spec.artifact, runtime="onnx", backend=backend, threads=spec.threads)
            made.append([])
            for one in spec.observed:
                if time.monotonic() > deadline:
                    raise TooSlow(sum(map(len, made)), len(npus) * len(spec.observed), spec.timeout_s)
                made[-1].append(runtime.run(one.batch.inputs))
                task.advance()
    return [(outputs, (f"htp v{npu.soc.htp_arch}",)) for npu, outputs in zip(npus, made, strict=True)]


def _work(spec: EmulateSpec, machine: Machine, share: Iterable[int]) -> Work:
    samples = tuple(spec.observed[index].batch.inputs for index in share)
    return Work(
        runtime=machine.runtime,
        cpu=machine.cpu,
        model=spec.artifact,
        samples=samples,
        threads=spec.threads,
        where=machine.cpu_name,
    )


def _device_run(
    spec: EmulateSpec, machine: Machine | Npu, outputs: list[Outputs], features: tuple[str, ...]
) -> DeviceRun:
    observed = spec.observed
    hosts = [one.host for one in observed]
    floats = [one.fp32 for one in observed if one.fp32 is not None]
    has_fp32 = len(floats) == len(observed)
    scores = [_scores(spec, made) for made in (outputs, hosts, floats if has_fp32 else ())]
    device, host, fp32 = scores
    score = chosen_metric(spec.metric, outputs[0], labelled=True) if outputs else None
    name = machine.cpu_name
    pairs = zip(observed, hosts, outputs, strict=True)
    said = [says_the_same(host, made, spec.scheme) for one, host, made in pairs if one.continues]
    sequences = sequences_of(sample for one in observed if one.scored for sample in one.batch.samples)
    return DeviceRun(
        cpu=name,
        runtime=machine.runtime_title,
        features=features,
        samples=sum(one.batch.rows for one in observed),
        host=_agreement(HOST, name, _pairs(observed, hosts, outputs), spec.output_steps),
        fp32=_agreement("fp32", name, _pairs(observed, floats, outputs), ()) if has_fp32 else None,
        score=_mean(score, device),
        host_score=_mean(score, host),
        fp32_score=_mean(score, fp32),
        scored=len(device),
        rescored=sum(map(_scores_otherwise, device, host)) if device else None,
        drop_pp=metric_drop_pp(score, fp32, device, sequences=sequences)
        if score and fp32 and len(fp32) == len(device)
        else None,
        findings=tuple(_findings(outputs, hosts)),
        next_tokens=(sum(said), len(said)) if said else None,
    )


def _scores(spec: EmulateSpec, outputs: Sequence[Outputs]) -> list[Any]:
    if not spec.labelled or not outputs:
        return []
    score = chosen_metric(spec.metric, outputs[0], labelled=True)
    if score is None:
        return []
    pairs = zip(spec.observed, outputs, strict=True)
    return [value for one, made in pairs if one.scored for value in batch_scores(score, one.batch, made)]


def _scores_otherwise(device: Any, host: Any) -> bool:
    """Whether two scores of a sample differ; rows of numbers by more than kernels that round otherwise make of them."""
    return bool(device != host) if np.ndim(device) == 0 else not np.allclose(device, host, rtol=_SAME_ROW)


def _mean(score: Metric | SetMetric | None, scores: list[Any]) -> float | None:
    return mean_score(score, scores) if scores and score else None


def _findings(outputs: list[Outputs], hosts: list[Outputs]) -> Iterator[str]:
    """Name what is wrong whatever the limits, each once."""
    pairs = zip(outputs, hosts, strict=True)
    yield from dict.fromkeys(found for made, host in pairs for found in infinity_findings(made, host, "the host"))
    for made, host in zip(outputs, hosts, strict=True):
        left, right = ([(array.dtype.name, array.shape) for array in side] for side in (host, made))
        if left != right:
            yield f"outputs are {right}, but those on the host are {left}"
            return


def _pairs(observed: Sequence[Observed], left: Sequence[Outputs], right: Sequence[Outputs]) -> Iterator[Pair]:
    for one, expected, measured in zip(observed, left, right, strict=True):
        yield one.batch, cut(one.batch, expected), cut(one.batch, measured)


def _agreement(left: str, right: str, pairs: Iterable[Pair], steps: Sequence[float | None]) -> Agreement:
    sums, samples, comparable = Comparison(nominal=True), 0, True
    for batch, expected, measured in pairs:
        samples += batch.rows
        comparable = comparable and [a.shape for a in expected] == [a.shape for a in measured]
        if comparable:
            sums.add(expected, measured, steps, rows=real_rows(batch))
    return Agreement(
        left=left,
        right=right,
        samples=samples,
        max_abs=sums.max_abs if comparable else math.nan,
        max_steps=sums.max_steps if comparable else None,
        sqnr_db=sums.sqnr_db if comparable else math.nan,
        differing=sums.differing / sums.elements if comparable and sums.elements else 1.0,
        near_ties=comparable and sums.near_ties,
        top1_flips=sums.ranked - sums.agreeing if comparable and sums.ranked else None,
        ranked=sums.ranked if comparable else None,
    )


def _golden(observed: Sequence[Observed], outputs: list[Outputs]) -> Golden:
    pairs = list(zip(observed, outputs, strict=True))
    first = [pair for pair in pairs if pair[0].golden] or pairs[:GOLDEN_SAMPLES]
    return tuple((one.batch.samples[0], of_sample(one.batch, made, 0)) for one, made in first)
