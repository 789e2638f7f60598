"""The whole verify step on artifacts that are what they claim, and on artifacts that are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import (
    IMAGE,
    artifact,
    dataset,
    folder,
    loaded,
    lowered,
    quantized,
    sample,
    small_net,
)
from torch import nn
from verify_cases import float_case, spec_of

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset
from edgeq.core.system import host_arch
from edgeq.demo import digits
from edgeq.verify.accumulate import PARITY_SAMPLES
from edgeq.verify.host import HostRuntime
from edgeq.verify.verify import in_mixed_order, verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


@pytest.mark.parametrize(
    ("kind", "scheme", "backend"),
    [
        ("executorch", "static-int8", "xnnpack"),
        ("executorch", "fp32", "xnnpack"),
        ("torchscript", "static-int8", "qnnpack"),
        ("torchscript", "static-int8", "x86"),
    ],
)
def test_an_artifact_that_is_what_it_claims(runtime, kind, scheme, backend):
    graph, low = artifact(kind, scheme, backend)
    samples = dataset((IMAGE,), 12, whole=False)
    spec = spec_of(low, graph, small_net().model, (IMAGE,), samples, backend=backend)
    report, golden = verify(spec, runtime)
    assert report.findings == ()
    assert report.parity.samples == PARITY_SAMPLES
    if scheme == "fp32":
        assert report.parity.sqnr_db > 100
        assert report.fidelity.sqnr_db > 100
        assert report.fidelity.top1_agreement == 1
    else:
        assert report.parity.max_steps <= 1.001
        assert 15 < report.fidelity.sqnr_db < 60
    if backend == "qnnpack":
        assert report.parity.differing == 0
    assert report.fidelity.samples == 12
    assert report.fidelity.score is report.fidelity.drop_pp is None
    assert report.kernels.int8_macs == (1 if scheme == "static-int8" else 0)
    # 0 where the child, which ran others before, had room for so small a net
    assert report.peak_memory_bytes is not None
    assert report.load_ms > 0
    assert 0 < report.timing.p50_ms <= report.timing.p90_ms
    assert (report.timing.runs, report.timing.threads, report.timing.arch) == (3, 1, host_arch())
    assert report.outputs == (TensorSpec(name="output0", dtype="float32", shape=(1, 5)),)
    assert golden.inputs[0].shape == (4, 3, 16, 16)
    assert golden.outputs[0].shape == (4, 5)


def test_digits_on_qnnpack_are_bit_equal_to_their_graph(runtime):
    spec = TensorSpec(name="image", dtype="float32", shape=(1, 1, 32, 32))
    model = loaded_digits(spec)
    graph = quantized(model, calibration=digit_data(spec, 64))
    low = lowered(graph, (spec,), folder() / "digits-verify")
    samples = digit_data(spec, 60)
    report, _ = verify(spec_of(low, graph, model.model, (spec,), samples, is_evaluation=True), runtime)
    assert report.findings == ()
    assert report.parity.differing == 0
    assert report.parity.max_steps == 0
    assert report.fidelity.fp32_score > 0.95
    labels = [sample.label for sample in samples]
    assert report.fidelity.chance_score == max(map(labels.count, labels)) / 60
    assert report.fidelity.drop_pp.estimate < 5
    assert report.fidelity.top1_agreement > 0.95
    assert report.kernels.int8_macs == 1


def loaded_digits(spec):
    return dataclasses.replace(loaded(nn.Identity(), spec), model=digits.model())


def digit_data(spec, count):
    pixels, labels = digits.images()

    def read(i):
        tensor = torch.from_numpy(pixels[i, ..., 0].astype(np.float32) / 255)[None, None]
        large = torch.nn.functional.interpolate(tensor, (32, 32), mode="bilinear").numpy()
        return sample(((large - 0.31) / 0.38).astype(np.float32), label=labels[i])

    return Dataset(origin="digits", count=count, read=read, labelled=True)


SMALL = (TensorSpec(name="x", dtype="float32", shape=(1, 6)),)
FOUR = (TensorSpec(name="x", dtype="float32", shape=(4, 6)),)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(x)


class Dead(Linear):
    def forward(self, x):
        return self.head(x * 0)


class Lost(Linear):
    def forward(self, x):
        return torch.log(-self.head(x) * 0 - 1)


class DeadDetector(Linear):
    def forward(self, x):
        return torch.arange(400.0).reshape(100, 4) + 0 * x.sum()


class HalfDead(Linear):
    def forward(self, x):
        return self.head(x), self.head(x * 0)


class TwoHeads(Linear):
    def forward(self, x):
        return self.head(x), self.head(x)


class Shifted(Linear):
    def forward(self, x):
        return self.head(x) * 1.5


class Wide(Linear):
    def forward(self, x):
        return torch.cat([self.head(x), x], 1)


class Anchored(Linear):
    def forward(self, x):
        return self.head(x), torch.arange(8.0) + 0 * x.sum()


@pytest.mark.parametrize(
    ("module", "fp32", "told"),
    [
        (Dead, None, "the output is constant"),
        (Dead, Linear, "the output is constant"),
        (DeadDetector, None, "the output is constant"),
        (HalfDead, TwoHeads, "output1 is constant, unlike that of fp32"),
        (Lost, None, "output0 holds NaN or Inf"),
        (Linear, Lost, "fp32 model's own output holds NaN"),
        (Lost, Lost, "fp32 model's own output holds NaN or Inf: let forward return finite numbers"),
        (Linear, Wide, "outputs have the shapes [(1, 5)], but those of fp32 have [(1, 11)]"),
        (Linear, TwoHeads, "outputs have the shapes"),
    ],
)
def test_what_is_wrong_whatever_the_limits(runtime, module, fp32, told):
    report, _ = float_case(runtime, module, SMALL, dataset(SMALL, 6), fp32=fp32)
    assert any(told in finding for finding in report.findings), report.findings


class Overwriting(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).mul_(2.0) + 1


class OverwritingAView(nn.Module):
    def forward(self, x):
        x[:, 1:3].zero_()
        return x + 1


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Overwriting, "overwrites its input 'x'"),
        (OverwritingAView, "overwrites its input 'x'"),
        (Counting, "a second call on the same input gives other outputs than the first"),
        (Linear, ""),
    ],
)
def test_an_artifact_that_a_second_call_on_one_buffer_finds_out(tmp_path, module, told):
    """The lowering step makes none of these; a file of another origin may be one."""
    graph = quantized(loaded(Linear, *SMALL), scheme="fp32")
    low = lowered(graph, SMALL, tmp_path / "low")
    torch.jit.script(module().eval())._save_for_lite_interpreter(str(low.path))
    with HostRuntime(trusted=True) as runtime:
        report, _ = verify(spec_of(low, None, None, SMALL, dataset(SMALL, 6)), runtime)
    assert bool(report.findings) == bool(told)
    assert not told or any(told in finding for finding in report.findings), report.findings


@pytest.mark.parametrize("module", [Anchored, Linear])
def test_a_second_output_that_is_constant_by_design_is_no_finding(runtime, module):
    assert float_case(runtime, module, SMALL, dataset(SMALL, 6))[0].findings == ()


@pytest.mark.parametrize(("module", "dead"), [(Dead, True), (DeadDetector, True), (Linear, False)])
def test_a_dead_model_is_found_with_a_single_sample_too(runtime, module, dead):
    report, _ = float_case(runtime, module, SMALL, dataset(SMALL, 1))
    assert bool(report.findings) == dead


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 3)

    def forward(self, tokens):
        return self.table(tokens).sum(1)


def test_inputs_that_are_all_the_same_are_told_from_a_dead_model(runtime):
    specs = (TensorSpec(name="tokens", dtype="int64", shape=(1, 4), high=0.0),)
    report, _ = float_case(runtime, Embedded, specs, dataset(specs, 5))
    assert "all inputs are equal" in report.findings[0]
    wide = (dataclasses.replace(specs[0], high=7.0),)
    assert float_case(runtime, Embedded, wide, dataset(wide, 5))[0].findings == ()


def test_an_artifact_unlike_its_graph_shows_in_parity(runtime):
    model = loaded(Shifted, *SMALL)
    graph = quantized(model, scheme="fp32")
    low = lowered(quantized(loaded(Linear, *SMALL), scheme="fp32"), SMALL, folder() / "unlike")
    report, _ = verify(spec_of(low, graph, None, SMALL, dataset(SMALL, 4)), runtime)
    assert report.parity.sqnr_db == pytest.approx(20 * np.log10(1.5 / 0.5), abs=0.1)
    assert report.parity.differing == 1
    assert report.fidelity.sqnr_db is None


def test_padding_of_the_last_batch_does_not_count(runtime):
    labels = [i % 5 for i in range(10)]
    samples = dataset(FOUR, 10, whole=False, labels=labels)
    report, golden = float_case(runtime, Linear, FOUR, samples, is_evaluation=True)
    assert report.findings == ()
    assert report.fidelity.samples == 10
    assert report.fidelity.top1_agreement == 1
    model = loaded(Linear, *FOUR).model
    right = [int(model(torch.from_numpy(samples.read(i).inputs[0])).argmax() == labels[i]) for i in range(10)]
    assert report.fidelity.score == report.fidelity.fp32_score == np.mean(right)
    assert report.parity.samples == PARITY_SAMPLES
    assert golden.outputs[0].shape == (3, 5)
    with torch.no_grad():
        # batches are mixed, and a golden sample is the first of its batch
        expected = model(torch.from_numpy(in_mixed_order(samples).read(4).inputs[0]))
    np.testing.assert_allclose(golden.outputs[0][1], expected, rtol=1e-5)


def test_whole_batches_are_scored_row_by_row(runtime):
    labels = [np.array([0, 1, 2, 3])] * 3
    report, golden = float_case(runtime, Linear, FOUR, dataset(FOUR, 3, labels=labels), is_evaluation=True)
    model = loaded(Linear, *FOUR).model
    inputs = [dataset(FOUR, 3).read(i).inputs[0] for i in range(3)]
    right = [(model(torch.from_numpy(rows)).argmax(1).numpy() == labels[0]) for rows in inputs]
    assert report.fidelity.score == pytest.approx(np.mean(right))
    assert report.fidelity.top1_agreement == 1
    assert golden.outputs[0].shape == (3, 4, 5)


def test_labels_out_of_range_are_the_users_error(runtime):
    with pytest.raises(UsageError, match="label 5 is out of range"):
        float_case(runtime, Linear, SMALL, dataset(SMALL, 3, whole=False, labels=[1, 2, 5]), is_evaluation=True)


class Boxes(Linear):
    def forward(self, x):
        return torch.arange(400.0).reshape(100, 4) * x.sum(), x.sum()


def test_a_metric_sees_whole_outputs_that_have_no_batch_axis(runtime):
    seen = []

    def score(outputs, label):
        seen.append([output.shape for output in outputs])
        return float(label)

    samples = dataset(SMALL, 4, whole=False, labels=[0.1, 0.2, 0.3, 0.4])
    report, golden = float_case(runtime, Boxes, SMALL, samples, is_evaluation=True, metric=score, metric_name="iou")
    assert report.findings == ()
    # the artifact and fp32 of four samples, then fp32 of each against the label of the one before
    assert seen == [[(100, 4), ()]] * (8 + 3)
    assert (report.fidelity.metric, report.fidelity.score) == ("iou", pytest.approx(0.25))
    assert report.fidelity.drop_pp.estimate == 0
    assert report.fidelity.top1_agreement is None
    assert golden.outputs[0].shape == (4, 100, 4)


def test_a_score_that_is_not_finite_is_the_metrics_error(runtime):
    samples = dataset(SMALL, 2, whole=False, labels=[0, 1])
    with pytest.raises(UsageError, match="metric returned nan"):
        float_case(runtime, Linear, SMALL, samples, is_evaluation=True, metric=lambda *_: float("nan"))


def test_random_inputs_are_never_scored(runtime):
    report, _ = float_case(runtime, Linear, SMALL, dataset(SMALL, 3, whole=False, labels=[0, 1, 2]))
    assert report.fidelity.inputs == "random"
    assert report.fidelity.score is report.fidelity.drop_pp is None


def test_no_samples_are_no_verdict(runtime):
    with pytest.raises(UsageError, match="no samples"):
        float_case(runtime, Linear, SMALL, dataset(SMALL, 0))
