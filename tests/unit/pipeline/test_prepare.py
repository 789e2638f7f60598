"""Loading the model and its data, once for all targets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import DataConfig, Job, Task
from edgeq.core.errors import UsageError
from edgeq.core.results.model import LoadedModel
from edgeq.core.targets import load_target
from edgeq.pipeline.prepare import prepare


class Told:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = "") -> Iterator[Task]:  # noqa: ARG002
        self.steps.append(description)
        yield self

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def as_it_is(model: LoadedModel) -> LoadedModel:
    return model


def job(source: str, **data: object) -> Job:
    targets = (load_target("linux-x86_64-x86"),)
    return Job(source=source, targets=targets, out=Path("out"), data=DataConfig(**data))  # type: ignore[arg-type]


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\n\n\ndef model():\n    return torch.nn.Linear(4, 3)\n\n\n"
        "def example_inputs():\n    return (torch.zeros(1, 4),)\n\n\n"
        "def zero(outputs, label):\n    outputs[0][...] = 0\n    return 1.0\n"
    )
    return "net.py:model"


def test_only_the_demo_gets_its_own_data_and_what_was_given_stays() -> None:
    plain = job("torchvision:resnet18")
    assert with_demo_data(plain) is plain
    demo = with_demo_data(job("digits", evaluation="mine.npz"))
    assert demo.name == "digits"
    assert (demo.data.calibration, demo.data.evaluation) == ("edgeq.demo.digits:calibration_data", "mine.npz")


def test_without_data_random_inputs_stand_in(factory: str) -> None:
    told = Told()
    prepared = prepare(job(factory), told, schemes=("fp32",), describe=as_it_is)
    assert (prepared.is_evaluation, prepared.samples.count, prepared.calibration.count) == (False, 32, 0)
    assert prepared.data.evaluation_sha256 is None
    assert told.steps == [f"load {factory}", "read the data"]


def test_int8_needs_calibration_data(factory: str) -> None:
    with pytest.raises(UsageError, match="calibration data"):
        prepare(job(factory), Told(), schemes=("static-int8",), describe=as_it_is)


def test_a_name_that_no_bundle_can_have_is_refused_when_the_model_is_loaded(factory: str) -> None:
    Path("net.py").rename("мой net.py")
    with pytest.raises(UsageError, match="the model's name 'мой net': expected 1 to 64 of") as caught:
        prepare(job("мой net.py:model"), Told(), schemes=("fp32",), describe=as_it_is)
    assert "--name" in caught.value.fix


def test_the_name_of_the_folder_for_rejected_bundles_is_taken(factory: str) -> None:
    Path("net.py").rename("rejected.py")
    with pytest.raises(UsageError, match="rejected"):
        prepare(job("rejected.py:model"), Told(), schemes=("fp32",), describe=as_it_is)


def test_a_metric_gets_copies(factory: str) -> None:
    prepared = prepare(job(factory, metric="net.py:zero"), Told(), schemes=("fp32",), describe=as_it_is)
    assert prepared.metric is not None
    outputs = (np.ones(3),)
    assert prepared.metric(outputs, None) == 1.0
    assert outputs[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("value", "finding"), [(np.nan, "not-finite"), (0.0, None)])
def test_evaluation_data_alone_is_looked_at(factory: str, value: float, finding: str | None) -> None:
    samples = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    samples[3, 1] = value
    np.savez("evaluation.npz", input=samples, y=np.arange(8) % 3)
    asked = job(factory, evaluation="evaluation.npz")
    if finding is None:
        prepared = prepare(asked, Told(), schemes=("fp32",), describe=as_it_is)
        assert (prepared.is_evaluation, prepared.data.evaluation_samples, prepared.data.findings) == (True, 8, ())
    else:
        with pytest.raises(UsageError, match=finding):
            prepare(asked, Told(), schemes=("fp32",), describe=as_it_is)


def test_facts_tell_both_sets(factory: str) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 40), ("evaluation", 10)):
        np.savez(f"{name}.npz", input=rng.normal(size=(count, 4)).astype(np.float32), y=np.arange(count) % 3)
    asked = job(factory, calibration="calibration.npz", evaluation="evaluation.npz", num_calibration_samples=30)
    facts = prepare(asked, Told(), schemes=("static-int8",), describe=as_it_is).data
    assert (facts.calibration_samples, facts.evaluation_samples) == (30, 10)
    assert facts.calibration_sha256 != facts.evaluation_sha256
    again = prepare(asked, Told(), schemes=("static-int8",), describe=as_it_is).data
    assert again == facts


@pytest.mark.parametrize(
    ("last", "labels", "metric"),
    [
        ("torch.nn.Identity()", lambda i: i % 2, "accuracy@0"),
        ("torch.nn.Sigmoid()", lambda i: i % 2, "accuracy@0.5"),
        ("torch.nn.Flatten(0)", lambda i: float(i % 2), "accuracy@0"),
        ("torch.nn.Identity()", lambda i: [i % 2], "accuracy@0"),
        ("torch.nn.Identity()", lambda i: i % 7, "top1"),  # a quantity, which nothing says how to score
    ],
)
def test_one_output_and_labels_of_0_and_1_are_a_two_class_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, labels: Callable[[int], object], metric: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.py").write_text(
        f"import torch\n\n\ndef model():\n    return torch.nn.Sequential(torch.nn.Linear(4, 1), {last})\n\n\n"
        "def example_inputs():\n    return (torch.zeros(1, 4),)\n"
    )
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez("test.npz", x=rows, y=np.array([labels(i) for i in range(40)]))
    prepared = prepare(job("one.py:model", evaluation="test.npz"), Told(), schemes=("fp32",), describe=as_it_is)
    assert prepared.metric_name == metric
    assert (prepared.metric is None) == (metric == "top1")
    assert prepared.data.findings == ()
