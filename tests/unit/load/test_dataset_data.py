from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.config import DataConfig
from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches
from edgeq.load.dataset import open_dataset
from edgeq.load.selection import dataset_sha256


def opened(origin, spec, options=DataConfig(), **changes):  # noqa: B008
    settings = {"role": "calibration", "preprocess": Preprocess(resize=(16, 16)), "limit": None, "seed": 0}
    return open_dataset(str(origin), specs=[spec], options=options, **(settings | changes))


def test_dispatch_by_what_the_origin_names(tmp_path, paint, smooth, script, image_input):
    images = np.stack([smooth(i) for i in range(3)])
    for i in range(3):
        paint(tmp_path / "set" / f"{i}.png", i)
    np.savez(tmp_path / "a.npz", image=images)
    np.save(tmp_path / "a.npy", images)
    user = script(f"import numpy as np\ndef data():\n    return np.load({str(tmp_path / 'a.npy')!r})\n")
    digests = set()
    for origin in (tmp_path / "set", tmp_path / "a.npz", tmp_path / "a.npy", f"{user}:data"):
        data, skipped = opened(origin, image_input)
        assert (data.count, skipped) == (3, ())
        assert [batch.rows for batch in batches(data, [image_input])] == [1, 1, 1]
        digests.add(dataset_sha256(data))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("origin", "role", "reason"),
    [
        ("nowhere", "calibration", "--calibration-data: no such file or folder: nowhere"),
        ("nowhere", "evaluation", "--eval-data: no such file or folder: nowhere"),
        ("data.csv", "evaluation", "--eval-data: cannot take data from data.csv"),
        ("user.py", "calibration", "--calibration-data: cannot take data from user.py"),
        ("gone.npz", "calibration", "cannot read gone.npz: No such file"),
        ("gone.py:data", "calibration", "cannot read gone.py"),
    ],
)
def test_unknown_origins(tmp_path, monkeypatch, image_input, origin, role, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "user.py").write_text("")
    with pytest.raises(UsageError) as caught:
        opened(origin, image_input, role=role)
    assert reason in caught.value.what
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix


def test_a_name_that_cannot_be_looked_up(image_input):
    with pytest.raises(UsageError, match=r"--eval-data: cannot read .*name too long"):
        opened("a" * 300, image_input, role="evaluation")
    with pytest.raises(UsageError, match="no such file"):
        opened("a\0", image_input)


def test_labels_and_skipping_come_from_the_options(tmp_path, paint, image_input):
    for name in ("cat", "dog"):
        paint(tmp_path / "set" / name / "0.png", len(name))
    (tmp_path / "set" / "cat" / "1.png").write_bytes(b"broken")
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    options = DataConfig(labels=tmp_path / "labels.txt", skip_bad_images=True)
    data, skipped = opened(tmp_path / "set", image_input, options)
    assert [sample.label for sample in data] == [1, 0]
    assert data.class_names == ("dog", "cat")
    assert skipped == ("cat/1.png",)


def test_labels_name_the_classes_of_arrays(tmp_path, image_input):
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 16, 16), np.float32), y=np.array([0, 1]))
    data, _ = opened(tmp_path / "a.npz", image_input, DataConfig(labels=tmp_path / "labels.txt"))
    assert data.class_names == ("dog", "cat")


def test_images_that_do_not_fit_the_model_fail_at_once(tmp_path, paint, image_input):
    paint(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a\.png: input 'image' expects float32 \[3, 16, 16\] per sample, got .*8, 8"):
        opened(tmp_path, image_input, preprocess=Preprocess(resize=(8, 8)))
    with pytest.raises(UsageError, match="cannot crop"):
        opened(tmp_path, image_input, preprocess=Preprocess(crop=(64, 64)))
    other = TensorSpec(name="image", dtype="float64", shape=(1, 3, 16, 16))
    with pytest.raises(UsageError, match="expects float64"):
        opened(tmp_path, other)
