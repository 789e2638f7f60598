"""The real runners on the real QEMU: results, and every way in which a run goes wrong."""

from __future__ import annotations

import dataclasses
import os
import subprocess

import numpy as np
import onnx
import pytest
import torch
from small_models import IMAGE, dataset, quantized, small_net
from torch.jit.mobile import _load_for_lite_interpreter

from edgeq.core.errors import UnsupportedError, UsageError, VerificationError
from edgeq.core.samples import batches
from edgeq.lower.layers import archive_elements
from edgeq.lower.torchscript_archive import strip_archive
from edgeq.verify.emulate import runner as runner_module
from edgeq.verify.emulate.cpus import find_cpu, make_root, qemu_path
from edgeq.verify.emulate.runner import Core, TooSlow, Work, read_samples, run, run_all, write_samples
from edgeq.verify.metrics import Comparison

from .conftest import SELFTEST


def expected(kind: str) -> np.ndarray:
    with np.load(SELFTEST / "digits.npz") as arrays:
        return arrays[f"outputs_{kind}"]


@pytest.fixture
def work(executorch, digits):
    cpu = find_cpu("cortex-a53")
    return Work(runtime=executorch, cpu=cpu, model=SELFTEST / "digits.pte", samples=digits)


def test_two_models_give_the_hosts_outputs_and_detect_their_cores(work):
    cpus = [find_cpu("cortex-a53"), find_cpu("cortex-a76")]
    done = []
    works = [dataclasses.replace(work, cpu=cpu, runs=2, warmup=1) for cpu in cpus]
    little, big = run_all(works, timeout_s=120, on_sample=lambda: done.append(1))
    for ran, cpu in zip((little, big), cpus, strict=True):
        assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), expected("pte"))
        assert ran.core.uarch == cpu.uarch
        assert (ran.core.midr >> 4) & 0xFFF == cpu.part
        assert [len(times) for times in ran.latencies_ms] == [2] * len(work.samples)
        assert min(min(times) for times in ran.latencies_ms) > 0
        assert ran.load_ms > 0
        assert ran.peak_memory_bytes > 0
        assert (ran.engine, ran.threads) == ("executorch", 1)
    assert len(done) == 2 * len(work.samples)
    assert "dot" not in little.core.features
    assert "dot" in big.core.features


@pytest.mark.slow
def test_the_lite_interpreter_gives_the_hosts_outputs_and_takes_two_threads(torch_lite, digits):
    ran = run(
        Work(
            runtime=torch_lite,
            cpu=find_cpu("cortex-a76"),
            model=SELFTEST / "digits.ptl",
            samples=digits,
            threads=2,
        )
    )
    assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), expected("ptl"))
    assert (ran.engine, ran.threads) == ("qnnpack", 2)
    assert "dot" in ran.core.features


@pytest.mark.slow
def test_the_last_lite_runtime_reads_what_is_stored_once(torch_lite, tmp_path):
    graph = quantized(small_net(), backend="x86").graph  # scales by channel, which QNNPACK's own recipe has not
    plain, small = (tmp_path / name for name in ("plain.ptl", "small.ptl"))
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        traced = torch.jit.freeze(torch.jit.trace(graph, torch.zeros(IMAGE.shape), check_trace=False).eval())
        plain.write_bytes(traced._save_to_buffer_for_lite_interpreter())
    finally:
        torch.backends.quantized.engine = before
    small.write_bytes(plain.read_bytes())
    strip_archive(small)
    assert "float64" in dict(archive_elements(plain))
    assert "float64" not in dict(archive_elements(small))
    samples = [batch.inputs for batch in batches(dataset((IMAGE,), 3), (IMAGE,))]
    torch.backends.quantized.engine = "qnnpack"
    try:
        module = _load_for_lite_interpreter(str(plain))
        one = np.concatenate([module(torch.from_numpy(image)).numpy() for (image,) in samples])
    finally:
        torch.backends.quantized.engine = before
    ran = run(Work(runtime=torch_lite, cpu=find_cpu("cortex-a76"), model=small, samples=samples))
    assert np.ptp(one) > 0
    assert np.array_equal(one, np.concatenate([outputs[0] for outputs in ran.outputs]))


def onnx_work(onnx_runtime, samples, name="cortex-a53"):
    return Work(runtime=onnx_runtime, cpu=find_cpu(name), model=SELFTEST / "digits.ort", samples=samples)


def test_onnx_runtime_gives_the_hosts_outputs_and_reads_its_core(onnx_runtime, digits):
    works = [onnx_work(onnx_runtime, digits, name) for name in ("cortex-a53", "cortex-a76")]
    little, big = run_all(works, timeout_s=120)
    for ran, work in zip((little, big), works, strict=True):
        assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), expected("ort"))
        assert (ran.core.midr >> 4) & 0xFFF == work.cpu.part
        assert (ran.engine, ran.threads) == ("onnxruntime", 1)
        assert min(min(times) for times in ran.latencies_ms) > 0
    assert "dot" not in little.core.features
    assert "dot" in big.core.features


def test_onnx_runtime_chooses_its_kernels_by_the_emulated_core(onnx_runtime, digits):
    work = onnx_work(onnx_runtime, digits[:1])
    dotted = dataclasses.replace(work.cpu, part=0xD0B, features=find_cpu("cortex-a76").features)
    with pytest.raises(VerificationError, match="crashed with SIGILL"):  # a dot product, which a cortex-a53 lacks
        run(dataclasses.replace(work, cpu=dotted))


def test_a_core_without_a_micro_architecture_goes_by_its_part_number(onnx_runtime, digits):
    work = onnx_work(onnx_runtime, digits[:1])
    runner_module._check_core(work, Core(uarch=0, midr=0x410FD034, features=()))
    with pytest.raises(VerificationError, match="detected the part number 0x00000d0b instead of 0x00000d03"):
        runner_module._check_core(work, Core(uarch=0, midr=0x414FD0B1, features=()))


def test_onnx_runtime_names_what_does_not_fit(onnx_runtime, digits, tmp_path):
    work = onnx_work(onnx_runtime, digits[:1])
    image = digits[0][0]
    for arrays, said in (
        ((image, image), "the model takes 1 inputs, got 2"),
        ((image[:, :, 1:],), r"input 0 wants float32 \[1, 1, 32, 32\], got float32 \[1, 1, 31, 32\]"),
        ((image.astype(np.float64),), "got float64"),
    ):
        with pytest.raises(UsageError, match=said):
            run(dataclasses.replace(work, samples=(arrays,)))
    torn = tmp_path / "torn.ort"
    torn.write_bytes(work.model.read_bytes()[:10_000])
    with pytest.raises(VerificationError, match=r"onnxruntime 1\.20\.1 on cortex-a53: loading the model failed"):
        run(dataclasses.replace(work, model=torn))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, image.shape)
    node = onnx.helper.make_node("Unheard", ["x"], ["x1"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_empty_tensor_value_info("x1")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "strange.onnx"))
    with pytest.raises(UnsupportedError, match="the runtime lacks an operator"):
        run(dataclasses.replace(work, model=tmp_path / "strange.onnx"))


def test_an_event_trace_is_left(work):
    ran = run(dataclasses.replace(work, samples=work.samples[:1], trace=True))
    assert ran.trace is not None
    assert b"Convolution" in ran.trace


def test_a_run_for_another_core_is_refused(work):
    other = dataclasses.replace(find_cpu("cortex-a53"), uarch=find_cpu("cortex-a76").uarch)
    with pytest.raises(VerificationError, match="did not recognize the emulated cortex-a53"):
        run(dataclasses.replace(work, cpu=other, samples=work.samples[:1]))


def test_max_computes_garbage_which_is_why_it_is_refused(work):
    """Where this fails, QEMU has mended its emulation of SME, and the refusal may go."""
    if b"7.2" not in subprocess.run([qemu_path(), "--version"], capture_output=True, check=True).stdout:
        pytest.skip("another QEMU than 7.2")
    ran = run(dataclasses.replace(work, cpu=dataclasses.replace(find_cpu("cortex-a76"), name="max")))
    sums = Comparison()
    sums.add((expected("pte"),), (np.concatenate([outputs[0] for outputs in ran.outputs]),))
    assert sums.sqnr_db < 10


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_program_is_an_error_with_words(work, tmp_path, damage):
    data = bytearray(work.model.read_bytes())
    if damage == "empty":
        data.clear()
    elif damage == "text":
        data[:] = b"not a program" * 50
    elif damage == "cut":
        del data[len(data) // 3 :]
    else:
        data[8:600] = bytes(byte ^ 0xFF for byte in data[8:600])
    path = tmp_path / "bad.pte"
    path.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        run(dataclasses.replace(work, model=path, samples=work.samples[:1]))
    assert "executorch 1.5.1 on cortex-a53" in caught.value.what
    assert caught.value.exit_code == 7


def test_a_model_that_is_not_there(work, tmp_path):
    with pytest.raises(VerificationError, match="cannot be read"):
        run(dataclasses.replace(work, model=tmp_path / "none.pte"))


@pytest.mark.slow
def test_a_damaged_archive_is_an_error_with_words(torch_lite, digits, tmp_path):
    path = tmp_path / "bad.ptl"
    path.write_bytes((SELFTEST / "digits.ptl").read_bytes()[:20_000])
    work = Work(runtime=torch_lite, cpu=find_cpu("cortex-a53"), model=path, samples=digits[:1])
    with pytest.raises(VerificationError, match=r"torch 2\.1\.0 on cortex-a53.*loading the archive failed"):
        run(work)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ((np.zeros((1, 1, 8, 8), np.float32),), r"wants float32 \[1, 1, 32, 32\], got float32 \[1, 1, 8, 8\]"),
        ((np.zeros((1, 1, 32, 32), np.int32),), r"got int32 \[1, 1, 32, 32\]"),
        ((), "takes 1 inputs, got 0"),
    ],
)
def test_inputs_that_do_not_fit(work, inputs, told):
    with pytest.raises(UsageError, match=told):
        run(dataclasses.replace(work, samples=(inputs,)))


def test_a_time_limit_says_how_far_it_got(work):
    with pytest.raises(TooSlow, match=r"did not end within 2 s: \d+ of 4 samples were finished") as caught:
        run(dataclasses.replace(work, runs=1_000_000), timeout_s=2)
    assert "--timeout" in caught.value.fix
    assert caught.value.exit_code == 7


def test_a_crash_is_told_with_its_signal(work):
    """A core that is announced as one with dot products and has none: a real crash of the runtime."""
    cpu = dataclasses.replace(find_cpu("cortex-a76"), name="cortex-a53")
    with pytest.raises(VerificationError, match=r"crashed with SIGILL"):
        run(dataclasses.replace(work, cpu=cpu))


def test_the_runner_ends_with_its_parent(work, monkeypatch):
    """What an interrupt leaves behind: no process."""
    started = []
    popen = subprocess.Popen

    def watched(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(runner_module.subprocess, "Popen", watched)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([dataclasses.replace(work, runs=1)] * 2, timeout_s=60, parallel=2, on_sample=interrupt)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_missing_operator_is_named():
    said = "E 00:00:00.1 executorch:method.cpp:737] Missing operator: [3] aten::nonzero.out\n"
    told = "loading the method forward failed with code 0x14 (OperatorMissing)"
    err = runner_module._refused("executorch 1.5.1 on cortex-a53", told, said)
    assert isinstance(err, UnsupportedError)
    assert "aten::nonzero.out" in err.what
    assert err.exit_code == 3


class TestRunnerProgram:
    """The C++ program itself, as a command."""

    def call(self, work, tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
        root = make_root(work.cpu, tmp_path)
        command = [qemu_path(), "-cpu", work.cpu.name, "-L", str(root), str(work.runtime.runner), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}, timeout=60)

    def options(self, work, tmp_path) -> dict[str, str]:
        write_samples(tmp_path / "inputs", work.samples[:1])
        paths = {name: str(tmp_path / name) for name in ("inputs", "outputs", "report")}
        return {"model": str(work.model), **paths}

    def flags(self, options: dict[str, str]) -> list[str]:
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def test_it_writes_outputs_and_a_report(self, work, tmp_path):
        done = self.call(work, tmp_path, *self.flags(self.options(work, tmp_path)))
        assert (done.returncode, done.stdout) == (0, "done 1\n")
        assert np.array_equal(read_samples(tmp_path / "outputs")[0][0], expected("pte")[:1])
        assert '"uarch": 3146579' in (tmp_path / "report").read_text()

    @pytest.mark.parametrize(
        ("change", "status", "told"),
        [
            ({"runs": "0"}, 2, "--runs wants a number from 1 to 1000000, got '0'"),
            ({"threads": "two"}, 2, "--threads wants a number from 1 to 64, got 'two'"),
            ({"colour": "red"}, 2, "unknown option --colour"),
            ({"report": ""}, 2, "--report"),
            ({"outputs": "/nowhere/outputs"}, 2, "cannot write /nowhere/outputs"),
            ({"inputs": "/nowhere/inputs"}, 3, "cannot open /nowhere/inputs"),
        ],
    )
    def test_bad_options(self, work, tmp_path, change, status, told):
        done = self.call(work, tmp_path, *self.flags(self.options(work, tmp_path) | change))
        assert done.returncode == status
        assert told in done.stderr

    @pytest.mark.parametrize("cut", [0, 5, 12, 20, 60, 1000])
    def test_a_torn_container(self, work, tmp_path, cut):
        options = self.options(work, tmp_path)
        data = (tmp_path / "inputs").read_bytes()
        (tmp_path / "inputs").write_bytes(data[:cut])
        done = self.call(work, tmp_path, *self.flags(options))
        assert done.returncode == 3
        assert "error: " in done.stderr

    def test_sizes_that_overflow(self, work, tmp_path):
        options = self.options(work, tmp_path)
        huge = b"EDGEQT1\n" + (1).to_bytes(4, "little") * 2 + bytes([7, 4]) + (2**62).to_bytes(8, "little") * 4
        (tmp_path / "inputs").write_bytes(huge)
        done = self.call(work, tmp_path, *self.flags(options))
        assert done.returncode == 3
        assert "ends too soon" in done.stderr


def test_the_environment_of_the_host_does_not_reach_the_runner(work, monkeypatch):
    monkeypatch.setenv("QEMU_CPU", "max")
    monkeypatch.setenv("LD_LIBRARY_PATH", os.fspath("/nowhere"))
    ran = run(dataclasses.replace(work, samples=work.samples[:1]))
    assert ran.core.uarch == find_cpu("cortex-a53").uarch


@pytest.mark.slow
def test_an_archive_with_an_operator_that_the_runtime_lacks(torch_lite, tmp_path):
    """`_safe_softmax` came with torch 2.5; the device's lite interpreter is that of 2.1."""
    import torch

    class Newer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch._safe_softmax(x, -1)

    path = tmp_path / "newer.ptl"
    torch.jit.script(Newer())._save_for_lite_interpreter(str(path))
    work = Work(runtime=torch_lite, cpu=find_cpu("cortex-a53"), model=path, samples=((np.zeros((1, 4), np.float32),),))
    with pytest.raises(UnsupportedError, match=r"torch 2\.1\.0 on cortex-a53 lacks operators.*_safe_softmax") as caught:
        run(work)
    assert caught.value.exit_code == 3


def test_an_arm64_host_runs_without_qemu(work, tmp_path):
    """The command only: there is no ARM64 host to try it on."""
    here = runner_module._Here(tmp_path)
    command, environment = here.command(dataclasses.replace(work, cpu=None, threads=3), tmp_path)
    assert environment == {"LC_ALL": "C"}
    assert command[0] == str(work.runtime.runner)
    assert command[command.index("--threads") + 1] == "3"
    assert qemu_path() not in command
