"""What `--dry-run` prints: each step of each target, as it would be done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.install import match_apps
from edgeq.quantize import find_file_method, find_method
from edgeq.scheme import AUTO, AUTO_TRIES, LIMITS, NEEDS_CALIBRATION, NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.units import counted, format_bytes, format_quantity
from edgeq.verify.emulate.wanted import wants_emulation

if TYPE_CHECKING:
    from edgeq.job import Job
    from edgeq.target import TargetProfile


def plan_json(job: Job) -> dict[str, Any]:
    """Return the plan for machines: a list of steps for the run, and one for each target and scheme."""
    job = _with_own_data(job)
    return {
        "schema_version": 1,
        "plan": {
            "source": job.source,
            "out": str(job.out),
            "steps": _steps_json(_shared(job)),
            "targets": [
                {"target": target.name, "scheme": scheme, "steps": _steps_json(_own(job, target, scheme))}
                for target in job.targets
                for scheme in job.schemes_of(target)
            ],
        },
    }


def plan_text(job: Job) -> str:
    """Return the plan for people."""
    job = _with_own_data(job)
    lines = [f"plan for {job.source}; nothing is written", *_lines(_shared(job))]
    for target in job.targets:
        for scheme in job.schemes_of(target):
            lines += ["", f"{target.name}, {scheme}", *_lines(_own(job, target, scheme))]
    return "\n".join(lines)


def _with_own_data(job: Job) -> Job:
    """Return the job with the name and the data that the built-in model brings with it."""
    from edgeq.pipeline.prepare import with_demo_data

    return with_demo_data(job)


_Steps = list[tuple[str, str]]


def _lines(steps: _Steps) -> list[str]:
    return [f"  {name:9}  {text}" for name, text in steps]


def _steps_json(steps: _Steps) -> list[dict[str, str]]:
    return [{"step": name, "what": text} for name, text in steps]


def _shared(job: Job) -> _Steps:
    data = job.data
    load = [
        job.source,
        f"name {job.name}" if job.name else "",
        f"version {job.model_version}",
        f"weights {job.weights}" if job.weights else "",
        f"inputs {' '.join(job.inputs)}" if job.inputs else "",
        f"pixels as {job.input_dtype}, normalised by the artifact" if job.input_dtype else "",
        f"seed {job.seed}",
    ]
    samples = [
        f"calibration {data.calibration}" if data.calibration else "",
        f"evaluation {data.evaluation}" if data.evaluation else "no evaluation data given",
        f"preprocess {data.preprocess}" if data.preprocess else "",
        f"labels {data.labels}" if data.labels else "",
        "bad images skipped" if data.skip_bad_images else "",
        "findings are errors" if data.lint == "error" else "findings are warnings",
    ]
    cache = "used" if job.cache else "not used"
    return [("load", _joined(load)), ("data", _joined(samples)), ("cache", cache)]


def _own(job: Job, target: TargetProfile, scheme: str) -> _Steps:
    from edgeq.target import why_not_run

    apps = [str(app) for app, names in match_apps(job).items() if target.name in names]
    model = job.name or "<model>"
    where = f"{why}: its converted graph only" if (why := why_not_run(target.backend)) else "on this host"
    verify = f"{where}, {job.data.metric or 'top-1'}" if job.data.evaluation else f"{where}, against fp32"
    return [
        *_quantize(job, target, scheme),
        ("lower", f"{target.runtime}, {target.backend}, for runtime {target.app.oldest} and newer"),
        ("check", _joined(_gates(job, target, scheme)) or "compatibility only"),
        ("verify", verify),
        *([("emulate", _emulated(job, target))] if wants_emulation(target, job.device) else []),
        *([("compare", "fp32 and fp16 of the same target, which are then dropped")] if job.compare else []),
        ("bundle", f"{job.out / model / target.name}"),
        *(("install", app) for app in apps),
    ]


def _emulated(job: Job, target: TargetProfile) -> str:
    runtimes = f"{target.runtime} {', '.join(target.app.runtimes)}"
    return f"{runtimes} under QEMU, {', '.join(job.device.cpu or target.device.cpu)}"


def _quantize(job: Job, target: TargetProfile, scheme: str) -> _Steps:
    if scheme == AUTO:
        tries = ", ".join(name for name in AUTO_TRIES if name in target.schemes) or ", ".join(target.schemes)
        return [
            ("choose", f"the first of {tries} that passes every gate; what the model is made of says which is first")
        ]
    if scheme == "fp32":
        return []
    if job.source.endswith(".onnx"):
        method = find_file_method(scheme, Path(job.source).name).description
    else:
        method = find_method(target.runtime, scheme).description.format(backend=target.backend)
    kept = f"in float: {', '.join(job.keep_fp32)}" if job.keep_fp32 else ""
    samples = (
        counted(job.data.num_calibration_samples, "sample") if job.data.calibration else "no calibration data given"
    )
    steps = [("quantize", _joined([method, kept]))]
    if scheme in NEEDS_CALIBRATION:
        steps.append(("calibrate", f"{samples}, {job.observer} observer"))
    if job.reuse_qparams_from is not None:
        steps.append(("reuse", f"scales and zero points of {job.reuse_qparams_from} where they fit"))
    if scheme in NEEDS_TRAINING:
        steps.append(("train", _training(job)))
    if scheme in NEEDS_SEARCH:
        data = job.data.search or "the rest of the calibration data"
        steps.append(("search", f"the layers to leave in float, on at most {job.data.num_search_samples} of {data}"))
    return steps


def _training(job: Job) -> str:
    qat = job.qat
    data = f"at most {counted(qat.samples, 'sample')} of {qat.data or job.data.calibration or 'the calibration data'}"
    if qat.train:
        return _joined([qat.train, data])
    return _joined(
        [f"distil fp32 in {counted(qat.epochs, 'epoch')}", f"learning rate {qat.lr:g}", f"batch {qat.batch}", data]
    )


def _gates(job: Job, target: TargetProfile, scheme: str) -> list[str]:
    gates = job.gates
    lines = [
        f"{name} {'>=' if LIMITS[name].at_least else '<='} {format_quantity(value, LIMITS[name].dimension)}"
        for name, value in gates.limits
    ]
    if any(name == "accuracy_drop" for name, _ in gates.limits):
        lines.append(f"the drop's {gates.limit_on} counts")
    if gates.latency_on == "predicted":
        lines.append(f"latency as predicted for {gates.device} counts")
    if gates.shipped is not None:
        lines.append(f"instructions <= 1.1 x those of {gates.shipped}")
    audit = next((audit for name, audit in target.audit.items() if name == scheme), None)
    if audit is not None:
        lines += [f"{key} >= {value:.0%}" for key, value in audit if value]
    if gates.store_limits and gates.app_size_bytes is not None:
        lines.append(f"{', '.join(gates.store_limits)} with an app of {format_bytes(gates.app_size_bytes)}")
    if gates.allow_unmeasured:
        lines.append(f"may stay unmeasured: {', '.join(gates.allow_unmeasured)}")
    return lines


def _joined(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)
