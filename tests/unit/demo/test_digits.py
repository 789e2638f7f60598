import subprocess
import sys

import numpy as np
import pytest
import torch

from edgeq.core import preprocess
from edgeq.core.errors import EnvironmentProblem, ExitCode
from edgeq.demo import digits


@pytest.fixture(scope="module")
def evaluation():
    return digits.evaluation_data()


@pytest.fixture(scope="module")
def calibration():
    return digits.calibration_data()


def test_the_committed_checkpoint_is_accurate_on_the_test_third(evaluation):
    inputs = np.stack([preprocess.apply(digits.PREPROCESS, image) for image in evaluation["image"]])
    with torch.inference_mode():
        predicted = digits.model()(torch.from_numpy(inputs)).argmax(1).numpy()
    assert (predicted == evaluation["y"]).mean() >= 0.98


def test_the_checkpoint_is_small():
    assert digits.CHECKPOINT.stat().st_size < 500_000


def test_images_are_bytes_over_the_full_range():
    pixels, labels = digits.images()
    assert (pixels.shape, pixels.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_split_covers_every_image_once():
    train, test = digits.split(digits.images()[1])
    assert len(test) == 599
    assert sorted([*train, *test]) == list(range(1797))


def test_split_is_fixed_and_holds_every_class_in_proportion():
    labels = digits.images()[1]
    train, test = digits.split(labels)
    again = digits.split(labels)
    assert np.array_equal(train, again[0])
    assert np.array_equal(test, again[1])
    shares = np.bincount(labels[test]) / np.bincount(labels)
    assert np.abs(shares - 1 / 3).max() < 0.01


def test_no_image_is_in_both_sets(calibration, evaluation):
    seen = {image.tobytes() for image in calibration["image"]}
    assert not any(image.tobytes() in seen for image in evaluation["image"])


def test_data_are_the_two_parts(calibration, evaluation):
    assert calibration["image"].shape == (1198, 8, 8, 1)
    assert evaluation["image"].shape == (599, 8, 8, 1)
    assert len(calibration["y"]) == 1198
    assert len(evaluation["y"]) == 599
    assert set(calibration["y"][:100]) == set(range(10)), "a short calibration run should meet every class"


def test_the_mean_and_deviation_are_those_of_the_training_pixels(calibration):
    pixels = calibration["image"] / 255
    assert pixels.mean() == pytest.approx(digits.PREPROCESS.mean[0], abs=0.005)
    assert pixels.std() == pytest.approx(digits.PREPROCESS.std[0], abs=0.005)


def test_model_is_in_eval_mode_and_exports():
    net, inputs = digits.model(), digits.example_inputs()
    assert not net.training
    exported = torch.export.export(net, inputs).module()
    with torch.inference_mode():
        assert torch.allclose(exported(*inputs), net(*inputs), atol=1e-5)


def test_model_traces_with_fx():
    net, inputs = digits.model(), digits.example_inputs()
    with torch.inference_mode():
        assert torch.allclose(torch.fx.symbolic_trace(net)(*inputs), net(*inputs), atol=1e-5)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install .*\[digits\]'") as caught:
        digits.images()
    assert caught.value.exit_code is ExitCode.ENVIRONMENT


def test_the_images_are_those_of_scikit_learns_loader_which_is_not_imported():
    pixels, labels = digits.images()
    from sklearn.datasets import load_digits  # 1.5 s, in every worker that collects

    known = load_digits()
    assert (pixels[..., 0] == np.rint(known.images * (255 / 16))).all()
    assert (labels == known.target).all()
    code = "import sys, edgeq.demo.digits as digits; digits.images(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_scikit_learn_without_the_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"sklearn/datasets/data/digits\.csv\.gz, found none"):
        digits.images()


def test_missing_checkpoint_is_an_environment_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "CHECKPOINT", tmp_path / "none.safetensors")
    with pytest.raises(EnvironmentProblem, match="install edgeq again"):
        digits.model()
