"""GPU artifacts: what they store, that torch alone loads them, and that equal inputs give equal bytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
import torch
from small_models import captured_net, dataset, lowered, outputs_of, quantized, small_net

from edgeq.core.half import emulation
from edgeq.core.samples import batches
from edgeq.lower.torchscript import example_script

BACKENDS = ("cuda", "cuda-torchscript")


def made(folder, scheme="fp16", backend="cuda"):
    model = small_net()
    graph = quantized(model, "cuda", scheme, backend=backend, captured=captured_net())
    return graph, lowered(graph, model.inputs, folder, "cuda", backend=backend)


def loaded(path):
    return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(str(path))


def first_input():
    return torch.from_numpy(next(iter(batches(dataset(small_net().inputs, 1), small_net().inputs))).inputs[0].copy())


@pytest.mark.parametrize(
    ("scheme", "backend"),
    [
        *(("fp16", backend) for backend in BACKENDS),
        *(("storage-fp16", backend) for backend in BACKENDS),
        ("bf16", "cuda"),
        ("fp32", "cuda"),
    ],
)
def test_the_file_computes_what_the_graph_does(tmp_path, scheme, backend):
    graph, low = made(tmp_path, scheme, backend)
    with torch.no_grad(), emulation():
        got = loaded(low.path)(first_input())
    assert torch.equal(got, torch.from_numpy(outputs_of(graph.graph, small_net().inputs)[0][0]))
    dtype = {"fp16": "float16", "bf16": "bfloat16", "storage-fp16": "float16", "fp32": "float32"}[scheme]
    assert dict(low.stored)[dtype] / sum(dict(low.stored).values()) > 0.8
    assert [layer.name for layer in low.layers] == ["conv", "depth", "hidden.0", "head"]
    assert low.macs == 16 * 16 * (3 * 9 * 8 + 9 * 8) + 8 * 16 + 16 * 5
    assert low.cuda.least_capability == {"fp16": "5.3", "bf16": "8.0"}.get(scheme)
    assert (low.runtime_version, low.cuda.compiled_for) == (torch.__version__.partition("+")[0], None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_half_may_be_widened_once(tmp_path, backend):
    graph, low = made(tmp_path, "storage-fp16", backend)
    module = loaded(low.path)
    before = outputs_of(graph.graph, small_net().inputs)[0][0]
    with torch.no_grad():
        assert torch.equal(module.float()(first_input()), torch.from_numpy(before))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_inputs_give_equal_bytes_without_paths(tmp_path, backend):
    first, second = (made(tmp_path / name, backend=backend)[1].path for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        for name in archive.namelist():
            held = archive.read(name)
            assert not any(
                word in held for word in (b'.py"', b"small_models", b"site-packages", str(tmp_path).encode())
            )


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "backend"), [("fp16", "cuda"), ("storage-fp16", "cuda-torchscript")])
def test_the_example_runs_with_torch_alone(tmp_path, scheme, backend):
    _, low = made(tmp_path, scheme, backend)
    ((role, example),) = low.companions
    assert (role, example.name) == ("example", "run_example.py")
    assert "edgeq" not in example.read_text()
    assert len([line for line in example.read_text().splitlines() if line.strip()]) <= 14
    done = subprocess.run([sys.executable, "-I", str(example)], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu torch.float32 [1, 5] [")


def test_an_example_of_every_kind_of_input_is_python():
    from edgeq.core.results.model import TensorSpec

    specs = [TensorSpec(name="a", dtype=dtype, shape=shape) for dtype in ("float32", "int64") for shape in ((), (2, 3))]
    compile(example_script("model.pt2", "fp16", specs), "run_example.py", "exec")
