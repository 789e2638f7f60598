"""A CUDA target as a user meets it on a machine without a GPU: emulated, marked so, and never timed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from edgeq.bundle.golden import read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.pipeline.devices import served

from .conftest import X86, Project, Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")]

CUDA = "linux-x86_64-cuda"
COMMAND = (
    "quarters.py:model",
    "--out",
    "out",
    "--eval-data",
    "evaluation.npz",
    "--calibration-data",
    "calibration.npz",
)


def test_emulated_and_not_timed(edgeq: Run, project: Project) -> None:
    command = ("package", *COMMAND, "--target", CUDA, "--limit", "latency=50ms", "--limit", "accuracy_drop=9pp", "-q")
    result = edgeq(*command, "--json")
    assert result.code == 7
    assert result.gate("latency")["outcome"] == "unverified"
    assert "no CUDA device" in result.gate("latency")["detail"]
    assert result.gate("accuracy_drop")["outcome"] == result.gate("parity")["outcome"] == "ok"

    allowed = edgeq(*command, "--json", "--allow-unmeasured", "latency")
    assert allowed.code == 0, allowed.err
    seen = allowed.json["rows"][0]["verified"]
    assert [seen[key] for key in ("timing", "load_ms", "peak_memory_bytes")] == [None] * 3
    assert "emulated" in seen["stand_in"]
    manifest = project.manifest(CUDA)
    assert manifest["scheme"] == "fp16"
    assert "emulated" in manifest["verified_on"]
    version = torch.__version__.partition("+")[0]
    assert manifest["cuda"] == {"torch": version, "cuda": None, "compiled_for": None, "least_capability": "5.3"}
    assert {entry["role"] for entry in manifest["files"]} == {"artifact", "golden", "example"}

    bundle = project.out / "quarters" / CUDA
    assert edgeq("verify", bundle, "-q").code == 0
    read = read_bundle(bundle)
    gate, measures = served(read, read_golden(read), timeout_s=600.0, device="cpu")
    assert gate.passed, gate
    assert (measures.platform, measures.threads, measures.runtime) == ("linux", 2, f"torch {torch.__version__}")
    edgeq("verify", bundle, "--on", "cuda").fails(9, "no CUDA device", "nvidia-smi")
    newer = json.loads((bundle / "manifest.json").read_text())
    newer["cuda"]["torch"] = "99.0.0"
    (bundle / "manifest.json").write_text(json.dumps(newer))
    refused = edgeq("verify", bundle, "--json", "-q")
    assert refused.code == 3
    assert [gate["outcome"] for gate in refused.json["gates"] if gate["name"] == "box"] == ["failed"]
    (bundle / "run_example.py").write_text("print('mine')")
    assert edgeq("verify", bundle, "-q").code == 8


def test_serving_on_a_gpu_is_for_gpu_bundles(edgeq: Run, project: Project) -> None:
    assert edgeq("package", *COMMAND, "--target", X86, "--scheme", "fp32", "-q").code == 0
    edgeq("verify", project.out / "quarters" / X86, "--on", "cuda").fails(3, "not on CUDA")
    edgeq("package", *COMMAND, "--target", CUDA, "--on", "cuda").fails(2, "finished bundles")


def test_equal_runs_give_equal_bundles_for_both_architectures(edgeq: Run, project: Project) -> None:
    digests = []
    for _ in range(2):
        command = ("package", *COMMAND, "--target", CUDA, "--target", "linux-arm64-cuda", "--scheme", "storage-fp16")
        result = edgeq(*command, "--json", "-q", "--no-cache")
        assert result.code == 0, result.err
        digests.append([row["digest"] for row in result.json["rows"]])
    assert digests[0] == digests[1]
    artifacts = [project.out / "quarters" / name / "model.pt2" for name in (CUDA, "linux-arm64-cuda")]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in artifacts}) == 1


def test_a_scheme_that_gpus_have_none_of(edgeq: Run) -> None:
    edgeq("package", *COMMAND, "--target", CUDA, "--scheme", "static-int8").fails(3, "static-int8")
