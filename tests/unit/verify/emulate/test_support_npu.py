"""A Snapdragon's NPU in Qualcomm's emulator: right outputs, another layer's weights, and what the NPU does not take."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeq.check.device import device_gate
from edgeq.core.config import DeviceConfig
from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.results.artifact import Observed
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, Dataset, Sample
from edgeq.core.targets import load_target
from edgeq.quantize.onnx import FileSpec, quantize_file
from edgeq.report.progress import Quiet
from edgeq.verify.emulate.emulate import EmulateSpec, emulate
from edgeq.verify.emulate.selftest import emulator_of
from edgeq.verify.emulate.support import OPTED_OUT, check_tools, find_npus, not_emulated, wants_emulation

SHAPE = (1, 3, 8, 8)
NAME = "android-arm64-qnn-htp"


def image(seed):
    array = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    return Sample(inputs=(array[0],), raw=(array[0],), label=None, name=str(seed), digest=str(seed))


def write_float(path, last="Flatten"):
    """Write two convolutions with a ReLU6 between, and a matrix product."""
    rng, helper, to_proto = np.random.default_rng(1), onnx.helper, onnx.numpy_helper.from_array
    weights = {"w0": (8, 3, 3, 3), "w1": (8, 8, 1, 1), "w2": (512, 5)}
    held = [to_proto((rng.normal(size=shape) * 0.2).astype(np.float32), name) for name, shape in weights.items()]
    held += [to_proto(np.float32(0), "low"), to_proto(np.float32(6), "high")]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], "clip"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "conv1"),
        helper.make_node(last, ["c"], ["d"], "last"),
        *([helper.make_node("Flatten", ["d"], ["e"], "flat")] if last != "Flatten" else []),
        helper.make_node("MatMul", ["d" if last == "Flatten" else "e", "w2"], ["y"], "head"),
    ]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", SHAPE), ("y", (1, 5)))]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def quantized(tmp_path, scheme, last="Flatten"):
    """Return the path of the quantized file."""
    folder = tmp_path / f"{scheme}-{last}"
    folder.mkdir()
    write_float(folder / "float.onnx", last)
    spec = FileSpec(
        path=folder / "float.onnx",
        folder=folder,
        inputs=(TensorSpec(name="x", dtype="float32", shape=SHAPE),),
        observer="minmax",
        keep_fp32=(),
        calibration=Dataset(origin="images", count=16, read=image),
        reduce_range=False,
        progress=Quiet(),
        label="small",
    )
    made = folder / "made.onnx"
    onnx.save(quantize_file(scheme, spec).proto, str(made))
    return made


def spec_of(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    observed = []
    for seed in range(100, 104):
        sample = image(seed)
        batch = Batch(inputs=(sample.inputs[0][None],), samples=(sample,))
        host = tuple(session.run(None, {"x": batch.inputs[0]}))
        observed.append(Observed(batch=batch, host=host, fp32=None))
    npus = find_npus(("sm8650", "sm8450"))
    return EmulateSpec(
        artifact=path,
        machines=npus,
        emulator=emulator_of(npus),
        observed=tuple(observed),
        output_steps=(),
        metric=None,
        labelled=False,
        timeout_s=120,
        progress=Quiet(),
        label="small",
        scheme="static-a16w8",
    )


@pytest.mark.slow
def test_the_npu_gives_the_hosts_outputs_and_other_weights_are_refused(tmp_path):
    right = quantized(tmp_path, "static-a16w8")
    spec = spec_of(right)
    report = emulate(spec).report
    gate = device_gate("static-a16w8", report)
    assert (gate.outcome, report.emulator) == ("ok", "HTP emulator of onnxruntime-qnn 2.7.0"), gate.detail
    assert [(run.cpu, run.features) for run in report.runs] == [("sm8650", ("htp v75",)), ("sm8450", ("htp v69",))]
    assert min(run.host.sqnr_db for run in report.runs) > 45

    proto = onnx.load(str(right))
    weight = next(item for item in proto.graph.initializer if tuple(item.dims) == (8, 8, 1, 1))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    gate = device_gate("static-a16w8", emulate(dataclasses.replace(spec, artifact=tmp_path / "wrong.onnx")).report)
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.VERIFICATION)
    assert "sm8650" in gate.detail


@pytest.mark.slow
def test_what_the_npu_does_not_take_is_refused_and_not_run_on_the_cpu(tmp_path):
    """A hyperbolic arc sine, which the HTP has not: the CPU would run it without a word."""
    path = quantized(tmp_path, "static-a16w8", last="Asinh")
    report = emulate(spec_of(path)).report
    assert (report.exit_code, report.runs) == (ExitCode.UNSUPPORTED, ())
    assert "the NPU does not take every operator of it" in report.problem


def test_on_host_does_not_leave_the_npu_out():
    on_host = DeviceConfig(on="host")
    assert wants_emulation(load_target(NAME), on_host)
    assert not_emulated(load_target(NAME), on_host) == ""
    assert not wants_emulation(load_target("android-arm64-ort"), on_host)
    assert not_emulated(load_target("android-arm64-ort"), on_host) == OPTED_OUT


def test_socs_are_checked_before_a_long_run():
    with pytest.raises(UsageError, match="unknown SoC 'cortex-a76'"):
        check_tools(DeviceConfig(cpu=("cortex-a76",)), (load_target(NAME),))
    check_tools(DeviceConfig(cpu=("sm8750",)), (load_target(NAME),))
    check_tools(DeviceConfig(), (load_target(NAME),))
