"""A new model against the shipped one, in the real runtime; from the command line in tests/integration/test_ota.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core.config import DataConfig, GateOptions
from edgeq.core.errors import UsageError
from edgeq.core.manifest import Bundle
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.model import TensorSpec
from edgeq.core.targets import load_target
from edgeq.pipeline.ota_release import churn, churn_gates
from edgeq.report.progress import Quiet
from edgeq.verify.host import HostRuntime

ROWS, CLASSES = 2, 3


@pytest.fixture(scope="module")
def runtime() -> Iterator[HostRuntime]:
    with HostRuntime() as child:
        yield child


def classifier(item: BundleInput, folder: Path, *, reversed_row: int | None = None) -> Bundle:
    """Return a model of two rows whose inputs are the scores, those of one row in reverse."""
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = [x[i].flip(0) if i == reversed_row else x[i] for i in range(ROWS)]
            return torch.stack(rows)

    path = folder.with_name(f"{folder.name}-made") / "model.pt"
    path.parent.mkdir()
    folder.mkdir()
    torch.jit.save(torch.jit.trace(Net(), torch.zeros(ROWS, CLASSES)), path)
    tensor = TensorSpec(name="x", dtype="float32", shape=(ROWS, CLASSES))
    made = changed(
        item,
        model=dataclasses.replace(item.inputs.model, inputs=(tensor,)),
        target=load_target("linux-x86_64-x86"),
        preprocess=None,
        lowered=dataclasses.replace(item.artifact.lowered, path=path, runtime="torchscript"),
        verified=dataclasses.replace(item.artifact.verified, outputs=(dataclasses.replace(tensor, name="output0"),)),
    )
    write_bundle(made, folder)
    return read_bundle(folder)


@pytest.fixture
def pair(item: BundleInput, tmp_path: Path) -> tuple[Bundle, Bundle]:
    return classifier(item, tmp_path / "new", reversed_row=1), classifier(item, tmp_path / "old")


def data(folder: Path, x: np.ndarray, y: object) -> DataConfig:
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=np.asarray(y))
    return DataConfig(evaluation=str(folder / "data.npz"))


# a model that reverses row 1 flips the second and the fourth
SCORES = np.asarray([[1, 2, 3], [1, 2, 3], [3, 2, 1], [3, 2, 1]])


def test_every_row_of_a_whole_batch_counts(pair, runtime, tmp_path):
    found = churn(*pair, data(tmp_path, SCORES.reshape(2, ROWS, CLASSES), [[2, 2], [0, 0]]), runtime, Quiet())
    assert (found.samples, found.flips, found.class_drop_pp) == (4, 0.5, 50.0)
    assert churn(*pair, data(tmp_path, SCORES, [2, 2, 0, 0]), runtime, Quiet()) == found


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([3, 4, 5, 6], "label 3 is out of range: the model has 3 classes"),
        ([2.5, 2, 0, 0], "'2.5' is not a class index"),
    ],
)
def test_labels_that_no_prediction_can_match_are_refused(pair, runtime, tmp_path, labels, told):
    with pytest.raises(UsageError, match=told):
        churn(*pair, data(tmp_path, SCORES, labels), runtime, Quiet())


@pytest.mark.parametrize(("count", "outcomes"), [(4, ("unverified", "unverified")), (1200, ("ok", "ok"))])
def test_that_none_of_a_few_samples_changed_proves_no_limit(pair, runtime, tmp_path, count, outcomes):
    rng = np.random.default_rng(0)
    sides, middle = rng.uniform(0, 1, count), rng.uniform(2, 3, count)
    x = np.stack((sides, middle, sides), 1)  # the same in reverse
    limits = GateOptions(limits=(("flips", 2.0), ("class_drop", 1.0)))
    gates = churn_gates(*pair, data(tmp_path, x, np.full(count, 1)), limits, runtime, Quiet())
    assert tuple(gate.outcome for gate in gates) == outcomes
    assert all("distinct samples" in gate.detail for gate in gates if gate.outcome == "unverified")
    (gate,) = churn_gates(
        *pair, data(tmp_path, SCORES, [2, 2, 0, 0]), GateOptions(limits=(("flips", 2.0),)), runtime, Quiet()
    )
    assert (gate.outcome, gate.exit_code) == ("failed", 5)
