"""The comparison, on the real emulator: what is equal, what differs, and what is wrong."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edgeq.check.device import device_gate
from edgeq.core.samples import Batch, Sample
from edgeq.lower import tflite
from edgeq.report.progress import Quiet
from edgeq.verify.emulate.cpus import find_cpu
from edgeq.verify.emulate.emulate import EmulateSpec, Observed, Subset, emulate, subset_size
from edgeq.verify.emulate.selftest import Machine

from .conftest import SELFTEST

LAST_LAYER = (71_572, 72_852)  # where digits.ort holds the int8 weights [10, 128] of its last layer


def observed(digits, host, labels=(None,) * 4) -> tuple[Observed, ...]:
    made = []
    for i, ((image,), label) in enumerate(zip(digits, labels, strict=True)):
        sample = Sample(inputs=(image[0],), raw=(image[0],), label=label, name=str(i), digest=str(i))
        batch = Batch(inputs=(image,), samples=(sample,))
        made.append(Observed(batch=batch, host=(host[i][None],), fp32=(host[i][None] + np.float32(0.01),)))
    return tuple(made)


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    with np.load(SELFTEST / "digits.npz") as arrays:
        return arrays["outputs_pte"]


@pytest.fixture
def spec(executorch, digits, known):
    machines = tuple(Machine(runtime=executorch, cpu=find_cpu(name)) for name in ("cortex-a53", "cortex-a76"))
    labels = tuple(int(row.argmax()) for row in known)
    return EmulateSpec(
        emulator="QEMU",
        artifact=SELFTEST / "digits.pte",
        machines=machines,
        observed=observed(digits, known, labels),
        output_steps=(0.05,),
        metric=None,
        labelled=True,
        timeout_s=120,
        progress=Quiet(),
        label="digits",
        scheme="static-int8",
    )


def test_equal_runs(spec, known):
    found = emulate(spec)
    assert found.report.problem == ""
    assert [run.cpu for run in found.report.runs] == ["cortex-a53", "cortex-a76"]
    for run in found.report.runs:
        assert run.host.sqnr_db == math.inf
        assert (run.host.max_abs, run.host.max_steps, run.host.differing, run.host.top1_flips) == (0, 0, 0, 0)
        assert run.fp32 is not None
        assert run.fp32.max_abs == pytest.approx(0.01, rel=1e-3)
        assert (run.score, run.host_score, run.scored, run.rescored, run.findings) == (1.0, 1.0, 4, 0, ())
    (pair,) = found.report.between
    assert pair.sqnr_db == math.inf
    assert (pair.left, pair.right) == ("cortex-a53 (executorch 1.5.1)", "cortex-a76 (executorch 1.5.1)")
    assert np.array_equal(np.concatenate([outputs[0] for _, outputs in found.golden[0]]), known)


def test_a_host_that_computes_otherwise_shows(spec, digits, known):
    other = known.copy()
    other[1] = other[1][::-1]
    labels = tuple(int(row.argmax()) for row in known)
    run = emulate(dataclasses.replace(spec, observed=observed(digits, other, labels))).report.runs[0]
    assert run.host.sqnr_db < 10
    assert run.host.top1_flips == 1
    assert run.rescored == 1
    assert run.host.max_steps > 1
    assert (run.score, run.host_score) == (1.0, 0.75)


def test_another_shape_is_a_finding_and_no_golden_samples(spec, digits, known):
    found = emulate(dataclasses.replace(spec, observed=observed(digits, known[:, :5]), labelled=False))
    assert "those on the host" in found.report.runs[0].findings[0]
    assert math.isnan(found.report.runs[0].host.sqnr_db)
    assert found.golden == ()


def test_too_slow_is_a_report_that_nothing_is_known(spec):
    report = emulate(dataclasses.replace(spec, timeout_s=0.05)).report
    assert report.is_unmeasured
    assert "0 of 8 samples were finished" in report.problem
    assert report.runs == ()


def test_a_damaged_artifact_is_a_report(spec, tmp_path):
    path = tmp_path / "bad.pte"
    path.write_bytes(b"nothing")
    report = emulate(dataclasses.replace(spec, artifact=path)).report
    assert not report.is_unmeasured
    assert report.exit_code == 7
    assert "executorch 1.5.1 on cortex-a" in report.problem


def test_an_ort_file_with_one_layer_changed_fails_the_device_gate(spec, onnx_runtime, digits, tmp_path):
    with np.load(SELFTEST / "digits.npz") as arrays:
        host = arrays["outputs_ort"]
    machines = tuple(dataclasses.replace(machine, runtime=onnx_runtime) for machine in spec.machines)
    right, wrong = SELFTEST / "digits.ort", tmp_path / "wrong.ort"
    spec = dataclasses.replace(spec, artifact=right, machines=machines, observed=observed(digits, host), labelled=False)
    gate = device_gate("static-int8", emulate(spec).report)
    assert (gate.outcome, gate.measured) == ("ok", "equal")
    data, (start, end) = bytearray(right.read_bytes()), LAST_LAYER
    data[start:end] = data[start:end][::-1]
    wrong.write_bytes(data)
    gate = device_gate("static-int8", emulate(dataclasses.replace(spec, artifact=wrong)).report)
    assert (gate.outcome, gate.exit_code) == ("failed", 7)
    assert "onnxruntime 1.20.1" in gate.detail


def test_a_tflite_file_with_one_layer_changed_fails_the_device_gate(spec, litert_runtime, digits, tmp_path):
    with np.load(SELFTEST / "digits.npz") as arrays:
        host = arrays["outputs_tflite"]
    machines = tuple(dataclasses.replace(machine, runtime=litert_runtime) for machine in spec.machines)
    right, wrong = SELFTEST / "digits.tflite", tmp_path / "wrong.tflite"
    spec = dataclasses.replace(spec, artifact=right, machines=machines, observed=observed(digits, host), labelled=False)
    gate = device_gate("static-int8", emulate(spec).report)
    assert (gate.outcome, gate.measured) == ("ok", "equal")
    model = tflite.load(right)
    last = [tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [10, 128]]
    (buffer,) = (model.buffers[tensor.buffer] for tensor in last)
    buffer.data = np.ascontiguousarray(buffer.data[::-1])
    tflite.save(model, wrong)
    gate = device_gate("static-int8", emulate(dataclasses.replace(spec, artifact=wrong)).report)
    assert (gate.outcome, gate.exit_code) == ("failed", 7)
    assert "ai-edge-litert 2.3.0" in gate.detail


@pytest.mark.parametrize(
    ("macs", "scheme", "count"),
    [
        (300_000_000, "static-int8", 16),
        (300_000_000, "fp32", 4),
        (1_800_000_000, "static-int8", 4),
        (1_000_000, "static-int8", 128),
        (0, "static-int8", 16),
    ],
)
def test_large_models_get_fewer_samples(macs, scheme, count):
    assert subset_size(macs, scheme) == count


@pytest.mark.parametrize(
    ("count", "rows", "limit", "kept"), [(100, 1, 10, 10), (7, 1, 10, 7), (100, 8, 32, 4), (5, 1, 2, 4)]
)
def test_the_subset_starts_with_the_golden_samples_and_is_spread(count, rows, limit, kept):
    subset = Subset(count=count, rows=rows, limit=limit, first=4)
    indices = [i for i in range(-(-count // rows)) if subset.keeps(i)]
    assert len(indices) == kept
    assert indices[:4] == [0, 1, 2, 3]
    if kept > 4:
        assert indices[-1] >= 0.8 * count // rows
