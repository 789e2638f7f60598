"""What a search that was killed may go on with: scores of the same judge alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeq.core.config import DataConfig, Job
from edgeq.core.samples import Dataset, Sample
from edgeq.load.user_code import load_metric
from edgeq.pipeline.quantize_specs import _judge


def labelled(*labels: object) -> Dataset:
    samples = [Sample(inputs=(), raw=(), label=label, name="", digest="") for label in labels]
    return Dataset(origin="", count=len(samples), read=samples.__getitem__, labelled=True)


def judge(samples: Dataset, metric: str | None = None) -> str:
    return _judge(Job(source="m.py:m", targets=(), out=Path("out"), data=DataConfig(metric=metric)), samples)


def test_other_labels_are_another_judge():
    big = np.zeros(5000, np.int64)
    mask = big.copy()
    mask[2500] = 1  # which no repr of it shows
    judges = [judge(labelled(0, 1)), judge(labelled(0, 2)), judge(labelled(big)), judge(labelled(mask))]
    assert len(set(judges)) == 4
    assert judge(labelled(big.copy())) == judges[2]


def test_a_metric_that_was_mended_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    judges = []
    for share in ("0.1", "0.2", "0.2"):
        Path("metric.py").write_text(f"def score(outputs, label):\n    return {share}\n")
        load_metric("metric.py:score")
        judges.append(judge(labelled(0), "metric.py:score"))
    assert judges[0] != judges[1] == judges[2]
