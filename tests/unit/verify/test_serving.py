"""The serving check, here on the CPU: the same process, script and protocol as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import captured_net, folder, lowered, outputs_of, quantized, small_net

from edgeq.core.errors import EnvironmentProblem, ExitCode, VerificationError
from edgeq.verify.runtimes import asked_bytes, rows_that_fit
from edgeq.verify.serving import RUNS, require_cuda, serve

pytestmark = pytest.mark.slow
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def artifact():
    graph = quantized(small_net(), "cuda", "storage-fp16", backend="cuda", captured=captured_net())
    return graph, lowered(graph, small_net().inputs, folder() / "serving", "cuda", backend="cuda").path


def test_a_fresh_process_without_edgeq_gives_the_same(artifact):
    graph, path = artifact
    samples = [(np.random.default_rng(i).random((1, 3, 16, 16)).astype("float32"),) for i in range(2)]
    served = serve(path, samples, device="cpu", widen=True, timeout_s=600.0)
    with torch.no_grad():
        expected = [graph.graph(*(torch.from_numpy(array) for array in sample)).numpy() for sample in samples]
    assert all(np.allclose(got, want, atol=1e-6) for (got,), want in zip(served.outputs, expected, strict=True))
    assert served.measures.runs == RUNS
    assert 0 < served.measures.p50_ms <= served.measures.p90_ms
    assert served.measures.runtime == f"torch {torch.__version__}"
    assert outputs_of(graph.graph, small_net().inputs)[0][0].shape == served.outputs[0][0].shape


def test_a_damaged_artifact_is_told_in_a_line(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(VerificationError, match="torch alone cannot run it"):
        serve(path, [(np.zeros((1, 3, 16, 16), "float32"),)], device="cpu", timeout_s=600.0)


def test_serving_ends_when_its_time_is_up(artifact):
    with pytest.raises(VerificationError, match="torch alone did not answer within 0 s") as caught:
        serve(artifact[1], [(np.zeros((1, 3, 16, 16), "float32"),)], device="cpu", timeout_s=0.1)
    assert caught.value.fix == "give a longer --timeout"


@no_gpu
def test_no_cuda_is_the_environments_fault(artifact):
    with pytest.raises(EnvironmentProblem, match="no CUDA device") as caught:
        serve(artifact[1], [(np.zeros((1, 3, 16, 16), "float32"),)], timeout_s=600.0)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "nvidia-smi" in caught.value.fix
    with pytest.raises(EnvironmentProblem, match="no CUDA device"):
        require_cuda()


@pytest.mark.parametrize(
    ("rows", "weights", "needed", "memory", "most"),
    [(64, 100, 740, 420, 32), (64, 100, 740, 739, 63), (8, 100, 900, 90, 0), (1, 0, 10, 9, 0)],
)
def test_rows_that_fit(rows, weights, needed, memory, most):
    assert rows_that_fit(rows, weight_bytes=weights, needed_bytes=needed, memory_bytes=memory) == most


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has", 2.5 * 2**30),
        ("Tried to allocate 512 bytes", 512),
        ("nothing", 0),
    ],
)
def test_what_torch_asked_for(text, size):
    assert asked_bytes(text) == size
