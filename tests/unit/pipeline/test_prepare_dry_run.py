"""`check_job`: what one run of the float model shows, without a download and without a call that makes data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgeq.core.config import DataConfig, Job
from edgeq.core.errors import EdgeqError, ExitCode
from edgeq.core.results.model import ModelFacts, ModelWork
from edgeq.core.targets import load_target
from edgeq.pipeline.plan import plan_text
from edgeq.pipeline.prepare import check_job
from edgeq.report.progress import Quiet

TARGET = load_target("linux-x86_64-xnnpack")

FILE = """
import torch


def model():
    return torch.nn.Linear(4, 2)


def example_inputs():
    return (torch.zeros(1, 4),)


def samples():
    raise RuntimeError("called")


def takes_one(path):
    return path


def score(outputs):
    return 1.0


def half(outputs, label):
    return "half"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    Path("net.py").write_text(FILE)
    np.savez("good.npz", x=np.zeros((8, 4), np.float32), y=np.arange(8) % 2)
    np.savez("wide.npz", x=np.zeros((8, 5), np.float32))
    np.savez("many.npz", x=np.zeros((8, 4), np.float32), y=np.full(8, 7))


def job(**changes: object) -> Job:
    base = Job(
        source="net.py:model", targets=(TARGET,), schemes=("static-int8",), data=DataConfig(calibration="good.npz")
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def found(asked: Job) -> list[tuple[str, str]]:
    with pytest.raises(EdgeqError) as caught:
        check_job(asked, Quiet())
    return [(one.key, one.what) for one in caught.value.findings]


@pytest.mark.parametrize("data", ["good.npz", "net.py:samples"])
def test_a_good_job_passes(data: str) -> None:
    check_job(job(data=DataConfig(calibration=data, evaluation="good.npz")), Quiet())


def test_each_set_and_function_is_looked_at() -> None:
    told = found(job(data=DataConfig(calibration="wide.npz", evaluation="many.npz")))
    assert [key for key, _ in told] == ["data.calibration", "data.evaluation"]
    assert "input 'input' expects [4] per sample, got [5]" in told[0][1]
    assert "7" in told[1][1]
    told = found(job(data=DataConfig(calibration="net.py:takes_one", evaluation="good.npz", metric="net.py:score")))
    assert [key for key, _ in told] == ["data.metric", "data.calibration"]
    assert "expected the signature score(outputs, label)" in told[0][1]
    ((key, what),) = found(job(data=DataConfig(calibration="good.npz", evaluation="good.npz", metric="net.py:half")))
    assert key == "data.evaluation"
    assert "expected a number for each sample, got str" in what


def test_a_function_that_its_file_does_not_define_is_found_by_its_name() -> None:
    told = found(job(data=DataConfig(calibration="net.py:sample", evaluation="good.npz", metric="net.py:scor")))
    assert told == [
        ("data.calibration", "--calibration-data: no 'sample' in net.py. Did you mean 'samples'?"),
        ("data.metric", "--metric: no 'scor' in net.py. Did you mean 'score'?"),
    ]


def test_weights_that_are_named_are_not_downloaded() -> None:
    asked = job(source="torchvision:squeezenet1_1", weights="DEFAULT", schemes=("fp32",), data=DataConfig())
    check_job(asked, Quiet())
    assert not Path("hub").exists()
    ((_, what),) = found(dataclasses.replace(asked, weights="IMAGENET1K_V7"))
    assert "is neither a file nor weights of squeezenet1_1" in what


def test_one_target_that_is_refused_ends_as_the_run_does() -> None:
    both = (TARGET, load_target("linux-x86_64-ort"))
    with pytest.raises(EdgeqError, match="--dynamic-batch is for ONNX targets") as caught:
        check_job(job(targets=both, dynamic_batch=True), Quiet())
    assert caught.value.exit_code == ExitCode.UNSUPPORTED
    assert caught.value.key == "targets"


def test_the_plan_says_what_becomes_of_the_tables_of_embeddings():
    facts = ModelFacts(inputs=(), outputs=(), work=ModelWork(linear_macs=10, table_share=0.9), notes=())
    without = dataclasses.replace(facts, work=ModelWork(linear_macs=10))

    def tables(name: str, scheme: str, facts: ModelFacts = facts) -> list[str]:
        lines = plan_text(job(targets=(load_target(name),), schemes=(scheme,)), {}, facts).splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if line.startswith("  tables")]

    int8 = "embeddings, 90.00% of the weights, in int8; not in 4 bits: "
    for name, scheme, why in (
        ("linux-x86_64-xnnpack", "dynamic-int8", "embedding_4bit"),
        ("linux-x86_64-ort", "dynamic-int8", "GatherBlockQuantized"),
        ("linux-x86_64-openvino", "weight-only-int8", "int4 rows"),
        ("linux-x86_64-x86", "weight-only-int8", "archives"),
    ):
        (line,) = tables(name, scheme)
        assert line.startswith(int8), line
        assert why in line
    for name, scheme in (("linux-x86_64-x86", "dynamic-int8"), ("linux-x86_64-openvino", "weight-only-int8")):
        assert tables(name, "static-int8") == [
            f"embeddings, 90.00% of the weights, in float32; --scheme {scheme} stores them in int8"
        ]
    assert not tables("linux-x86_64-x86", "dynamic-int8", without)
    assert not tables("linux-x86_64-x86", "fp16")
