"""A small net for Ethos-U: what vela makes of it, and what the reference model computes of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import zipfile

import numpy as np
import pytest
from small_models import IMAGE, Silent, captured_net, dataset, folder, quantized, small_net
from verify_cases import spec_of

from edgeq.check.artifact import outputs_gate, parity_gate
from edgeq.core.samples import Dataset
from edgeq.core.targets import load_target
from edgeq.core.vela import REFERENCE_NAME, stream_blocks
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.verify.ethos import EthosU
from edgeq.verify.host import HostRuntime
from edgeq.verify.verify import verify

pytestmark = pytest.mark.slow

U55, U85 = "ethos-u55", "ethos-u85"
TARGETS = {U55: "cortex-m-ethos-u55", U85: "linux-arm64-ethos-u85"}
MACS = {"conv": 16 * 16 * 8 * 3 * 9, "depth": 16 * 16 * 8 * 9, "hidden.0": 8 * 16, "head": 16 * 5}


def npu_of(backend):
    npu = load_target(TARGETS[backend]).npu
    return (npu.accelerator, npu.system_config, npu.memory_mode)


@functools.cache
def graph_of(scheme, backend):
    return quantized(small_net(), "executorch", scheme, backend=backend, captured=captured_net())


def written(graph, backend, name):
    place = folder() / name
    place.mkdir()
    spec = LowerSpec(
        inputs=(IMAGE,), backend=backend, folder=place, progress=Silent(), label="small", npu=npu_of(backend)
    )
    return lower("executorch", graph, spec)


@functools.cache
def made(scheme, backend):
    return written(graph_of(scheme, backend), backend, f"ethos-{scheme}-{backend}")


@pytest.fixture(scope="module")
def runtime():
    """One child for all tests: it imports ExecuTorch's reader of programs, which takes seconds."""
    with HostRuntime(trusted=True) as child:
        yield child


def judged(low, graph, backend, runtime):
    spec = dataclasses.replace(
        spec_of(low, graph, small_net().model, (IMAGE,), images()), backend=backend, output_steps=graph.output_steps
    )
    return verify(spec, runtime)[0]


def images() -> Dataset:
    return dataset((IMAGE,), 6)


@pytest.mark.parametrize(("scheme", "backend"), [("static-int8", U55), ("static-a16w8", U85)])
def test_the_reference_model_agrees_with_the_graph(scheme, backend, runtime):
    graph, low = graph_of(scheme, backend), made(scheme, backend)
    assert {layer.name: layer.macs for layer in low.layers} == MACS
    assert (low.delegated_macs, sorted(graph.quantized)) == (1.0, sorted(MACS))
    report = judged(low, graph, backend, runtime)
    gate = parity_gate(scheme, report.parity)
    assert (gate.outcome, outputs_gate(report).outcome) == ("ok", "ok"), gate.detail
    assert report.fidelity.sqnr_db > (30 if scheme == "static-int8" else 45)
    assert "not run on an Ethos-U" in report.stand_in
    assert (report.timing, report.peak_memory_bytes, report.load_ms) == (None, None, None)
    assert report.host.endswith("TOSA reference model of tosa-tools 2026.5.0")
    if scheme == "static-int8":
        assert report.kernels.int8_macs == 1.0
    else:  # int16 activations
        assert (report.kernels.int8_macs, "INT16" in report.kernels.why_unmatched) == (None, True)


def test_velas_figures_and_the_pools():
    low = made("static-int8", U55)
    npu = low.npu
    blocks = stream_of(low.path)
    assert (npu.accelerator, npu.parts) == ("ethos-u55-128", 1)
    assert npu.scratch_bytes == int.from_bytes(blocks["scratch_size"], "little")
    assert npu.flash_bytes == len(blocks["cmd_data"]) + len(blocks["weight_data"]) < low.path.stat().st_size
    # input and output in float32 and in int8
    assert npu.planned_bytes >= 5 * 3 * 16 * 16
    assert sum(MACS.values()) / 128 < npu.cycles < sum(MACS.values())
    assert npu.needed_sram_bytes == npu.sram_bytes + npu.planned_bytes
    kinds = ("dequantize", "quantize")
    assert npu.cpu_operators == tuple(f"quantized_decomposed::{kind}_per_tensor.out" for kind in kinds)


def stream_of(path):
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    return stream_blocks(program.backend_delegate_data[0].data)


def test_equal_inputs_give_equal_bytes():
    again = written(graph_of("static-int8", U55), U55, "ethos-again")
    assert [one.read_bytes() for one in (again.path, again.companions[0][1])] == [
        one.read_bytes() for one in (made("static-int8", U55).path, made("static-int8", U55).companions[0][1])
    ]


# --- Wrong artifacts: the weights of one layer are others.


def with_other_weights(graph):
    """The graph with one layer's int8 weights reversed."""
    changed = dataclasses.replace(graph, graph=copy.deepcopy(graph.graph))
    held = [buffer for _, buffer in changed.graph.named_buffers() if buffer.dtype.is_signed and buffer.dim() == 4]
    held[0].copy_(held[0].flip(0).clone())
    return changed


def test_a_program_with_another_layers_weights_fails_parity(runtime):
    """Both files are of the wrong graph: they agree with each other, and not with the right graph."""
    graph = graph_of("static-int8", U55)
    wrong = written(with_other_weights(graph), U55, "ethos-wrong")
    report = judged(wrong, graph, U55, runtime)
    gate = parity_gate("static-int8", report.parity)
    assert (gate.outcome, int(gate.exit_code)) == ("failed", 7)


def test_an_artifact_that_vela_does_not_make_of_its_tosa_program_is_refused(tmp_path):
    """One byte of the NPU's weights differs: the reference model would never see it."""
    low = made("static-int8", U55)
    data = bytearray(low.path.read_bytes())
    weights = stream_of(low.path)["weight_data"]
    place = bytes(data).index(weights) + len(weights) // 2
    data[place] ^= 1
    (tmp_path / low.path.name).write_bytes(data)
    (tmp_path / REFERENCE_NAME).write_bytes(low.companions[0][1].read_bytes())
    with pytest.raises(ValueError, match="not what vela makes"):
        EthosU(tmp_path / low.path.name, U55, 1, trusted=True).load()


def test_options_of_vela_that_would_read_or_write_files_are_refused(tmp_path):
    low = made("static-int8", U55)
    data = low.path.read_bytes().replace(b"--output-format=raw", b"--output-format=tfl")
    (tmp_path / low.path.name).write_bytes(data)
    (tmp_path / REFERENCE_NAME).write_bytes(low.companions[0][1].read_bytes())
    with pytest.raises(ValueError, match="an option of vela that edgeq does not use: --output-format=tfl"):
        EthosU(tmp_path / low.path.name, U55, 1, trusted=False).load()


def test_without_its_tosa_programs_nothing_is_said_of_an_artifact(tmp_path):
    low = made("static-int8", U55)
    (tmp_path / low.path.name).write_bytes(low.path.read_bytes())
    with pytest.raises(ValueError, match=f"{REFERENCE_NAME} is missing"):
        EthosU(tmp_path / low.path.name, U55, 1, trusted=True).load()


def test_the_cpu_computes_what_stays_in_float(runtime):
    """A layer of --keep-fp32 leaves the NPU: the program has two parts, and a float convolution between them."""
    graph = quantized(small_net(), "executorch", backend=U55, keep=("depth",), captured=captured_net())
    low = written(graph, U55, "ethos-kept")
    kept = {layer.name for layer in low.layers if not layer.delegated}
    assert kept == {"depth"}
    assert low.npu.parts == 2
    assert "aten::convolution.out" in low.npu.cpu_operators
    with zipfile.ZipFile(low.companions[0][1]) as archive:
        assert archive.namelist() == ["0.tosa", "1.tosa"]
    report = judged(low, graph, U55, runtime)
    gate = parity_gate("static-int8", report.parity)
    assert gate.outcome == "ok", gate.detail
    share = 1 - MACS["depth"] / sum(MACS.values())
    assert (report.kernels.int8_macs, low.delegated_macs) == (pytest.approx(share), pytest.approx(share))
    assert np.isfinite(report.fidelity.sqnr_db)
