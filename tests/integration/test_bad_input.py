"""What people get wrong: each has its exit code, names the file and the fix, and leaves nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import MODEL, QNNPACK, X86, XNNPACK, Project, Run, bright_quarters


@pytest.fixture(autouse=True)
def _nothing_written(project: Project) -> object:
    """No bad input may make OUT, the cache, or anything in the temporary folder."""
    yield
    assert not project.out.exists()
    assert not project.cache.exists()
    assert list(project.temporary.glob("edgeq-*")) == []


def save_state(path: Path, change: Callable[[dict[str, object]], object] = lambda state: state) -> None:
    import torch

    space: dict[str, object] = {}
    exec(MODEL, space)  # noqa: S102  # the model of the test's own project
    torch.save(change(dict(space["model"]().state_dict())), path)  # type: ignore[operator]


def test_a_missing_checkpoint_is_named(package: Run) -> None:
    package("--weights", "gone.pt").fails(2, "gone.pt", "check the path")


def test_a_truncated_checkpoint_is_named(package: Run) -> None:
    save_state(Path("half.pt"))
    Path("half.pt").write_bytes(Path("half.pt").read_bytes()[:1000])
    package("--weights", "half.pt").fails(2, "half.pt", "save it again")


def test_a_truncated_safetensors_file_is_named(package: Run) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100)}, "half.safetensors")
    Path("half.safetensors").write_bytes(Path("half.safetensors").read_bytes()[:200])
    package("--weights", "half.safetensors").fails(2, "half.safetensors", "save it again")


def test_wrong_keys_are_listed_the_first_few_only(package: Run) -> None:
    save_state(Path("other.pt"), lambda state: {f"net.{key.replace('.', '_')}": state[key] for key in state})
    result = package("--weights", "other.pt")
    result.fails(2, "other.pt", "features.0.weight", "net.features_0_weight", "…")
    assert "head.bias" not in result.err


def test_a_shape_that_does_not_fit_is_named(package: Run) -> None:
    import torch

    save_state(Path("wide.pt"), lambda state: {**state, "head.weight": torch.zeros(7, 16)})
    package("--weights", "wide.pt").fails(2, "wide.pt", "head.weight", "[7, 16]", "[4, 16]")


class Evil:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("evil-was-here", "w")  # type: ignore[return-value]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_in_place_of_weights_is_refused_and_never_run(package: Run, protocol: int) -> None:
    Path("evil.pt").write_bytes(pickle.dumps(Evil(), protocol=protocol))
    package("--weights", "evil.pt").fails(2, "evil.pt", ".safetensors")
    assert not Path("evil-was-here").exists()


def test_a_whole_saved_model_in_place_of_weights_is_refused(package: Run) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    package("--weights", "whole.pt").fails(2, "whole.pt", "state_dict()")


def test_a_factory_that_raises_is_told_with_its_line(package: Run) -> None:
    Path("broken.py").write_text("def model():\n    raise KeyError('no such width')\n")
    package("broken.py:model", "--target", X86, "-o", "out", "--scheme", "fp32", base=False).fails(
        2, "broken.py:model", "KeyError", "broken.py:2", "no such width"
    )


def test_a_factory_that_returns_no_module_is_told(package: Run) -> None:
    Path("broken.py").write_text("def model():\n    return {'weights': 1}\n")
    package("broken.py:model", "--target", X86, "-o", "out", "--scheme", "fp32", base=False).fails(
        2, "broken.py:model", "dict", "torch.nn.Module"
    )


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (
            ("quarters.py:model", "--target", "linux-x86_64-x87"),
            ("x86_64-x87", "Did you mean 'linux-x86_64-x86'?"),
        ),
        (("quarters.py:model", "--target", X86, "--scheme", "fp23"), ("fp23", "Did you mean 'fp32'?")),
        (("digit", "--target", X86), ("digit", "Did you mean 'digits'?")),
        (("torchvision:resnet81", "--target", X86, "--scheme", "fp32"), ("resnet81", "Did you mean 'resnet18'?")),
        (("quarters.py:modle", "--target", X86, "--scheme", "fp32"), ("modle", "Did you mean 'model'?")),
        (("quarter.py:model", "--target", X86, "--scheme", "fp32"), ("quarter.py", "check the path")),
        (("quarters.py:model", "--target", X86, "--limit", "sise=3MB"), ("sise", "Did you mean 'size'?")),
        (("quarters.py:model", "--target", X86, "--limit", "size=3ms"), ("3ms",)),
        (
            ("quarters.py:model", "--target", X86, "--scheme", "fp32", "--allow-unmeasured", "latenzy"),
            ("Did you mean 'latency'?",),
        ),
        (("quarters.py:model", "--target", X86, "--observer", "histo"), ("Did you mean 'histogram'?",)),
        (("quarters.py:model", "--target", X86, "--quiett"), ("--quiett", "Did you mean '--quiet'?")),
        (("quarters.py:model", "--target", X86, "--name", "rejected", "--scheme", "fp32"), ("rejected", "--name")),
    ],
)
def test_unknown_names_offer_the_nearest(package: Run, args: tuple[str, ...], texts: tuple[str, ...]) -> None:
    package(*args, "--out", "out", base=False).fails(2, *texts)


def test_an_unknown_key_of_the_project_file_is_named_with_its_file(package: Run) -> None:
    Path("edgeq.toml").write_text("[limits]\nsize = '3 MB'\n")
    package().fails(2, "edgeq.toml", "limits", "Did you mean 'limit'?")


def test_an_unknown_key_of_a_target_file_is_named_with_its_file(package: Run) -> None:
    Path("mine.toml").write_text(f'extends = "{X86}"\nname = "mine"\n[device]\nthread = 4\n')
    package("--target", "mine.toml").fails(2, "mine.toml", "device.thread", "Did you mean 'threads'?")


def test_a_scheme_that_is_known_but_not_supported_is_another_code(package: Run) -> None:
    package("--scheme", "pretrained", "--target", "linux-x86_64-xnnpack").fails(3, "pretrained", "its schemes")


def test_a_search_that_no_limit_would_end_is_an_error(package: Run) -> None:
    package("--scheme", "mixed-int8").fails(2, "mixed-int8", "--limit accuracy_drop=0.5pp")
    package("--search-data", "x.npz").fails(2, "--search-data is for schemes that search")


def make_images(folder: Path, count: int = 32, seed: int = 0) -> None:
    images, labels = bright_quarters(count, seed)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(place / f"{i:03}.png")


GRAY = 'color = "gray"\nresize = [8, 8]\nscale = 0.00392156862745098\nmean = [0.0]\nstd = [1.0]\n'


def image_options(folder: str) -> tuple[str, ...]:
    Path("gray.toml").write_text(GRAY)
    return ("quarters.py:model", "-t", X86, "-o", "out", "--calibration-data", folder, "--preprocess", "gray.toml")


def test_an_empty_image_folder_is_named(package: Run) -> None:
    Path("images").mkdir()
    package(*image_options("images"), base=False).fails(2, "images", ".png")


def test_an_unreadable_image_folder_is_named(package: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images").symlink_to("images")  # root may read everything, but nobody can follow this
    package(*image_options("images"), base=False).fails(2, "images")


def test_a_corrupt_image_among_good_ones_is_named(package: Run) -> None:
    make_images(Path("images"))
    Path("images/2/006.png").write_bytes(Path("images/2/006.png").read_bytes()[:40])
    package(*image_options("images"), base=False).fails(2, "006.png", "--skip-bad-images")


def test_images_without_preprocessing_are_refused(package: Run) -> None:
    make_images(Path("images"))
    args = ("quarters.py:model", "-t", X86, "-o", "out", "--calibration-data", "images")
    package(*args, base=False).fails(2, "images", "--preprocess")


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (np.zeros((32, 1, 9, 9), np.float32), ("[1, 8, 8]", "[1, 9, 9]")),
        (np.zeros((32, 3, 8, 8), np.float32), ("[1, 8, 8]", "[3, 8, 8]")),
        (np.zeros((32, 1, 8, 8), np.int64), ("float32", "int64")),
        (np.float32(3), ("the first axis",)),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(package: Run, array: np.ndarray, texts: tuple[str, ...]) -> None:
    np.savez("odd.npz", image=array)
    package("--calibration-data", "odd.npz").fails(2, "odd.npz", *texts)


def test_labels_of_another_length_are_refused(package: Run) -> None:
    images, labels = bright_quarters(32, 3)
    np.savez("odd.npz", image=images, y=labels[:-1])
    package("--calibration-data", "odd.npz").fails(2, "odd.npz", "32", "31")


def test_pickled_arrays_are_refused_and_never_run(package: Run) -> None:
    np.save("evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    package("--calibration-data", "evil.npy").fails(2, "evil.npy")
    assert not Path("evil-was-here").exists()


def test_an_input_that_the_model_does_not_take_is_refused(package: Run) -> None:
    package("--input", "1x2x8x8").fails(2, "[1, 2, 8, 8]", "--input")


def test_an_integer_input_for_a_float_model_is_refused(package: Run) -> None:
    package("--input", "int64:1x1x8x8:0..3", "--scheme", "fp32").fails(2, "--input", "int64")


DATA_DEPENDENT = MODEL.replace(
    "return self.head(",
    "if image.sum() > 3:\n            image = image * 2\n        return self.head(",
)


BRANCH_AT = f"quarters.py:{DATA_DEPENDENT[: DATA_DEPENDENT.index('if image')].count(chr(10)) + 1}"


def test_data_dependent_control_flow_is_refused_by_fx(package: Run) -> None:
    Path("quarters.py").write_text(DATA_DEPENDENT)
    package().fails(3, BRANCH_AT, "ExecuTorch")


@pytest.mark.slow
def test_data_dependent_control_flow_is_refused_by_export(package: Run) -> None:
    Path("quarters.py").write_text(DATA_DEPENDENT)
    args = ("quarters.py:model", "-t", XNNPACK, "-o", "out", "--calibration-data", "calibration.npz")
    result = package(*args, base=False)
    result.fails(3, BRANCH_AT, "torch.where")
    assert "TorchScript" not in result.err  # its targets refuse it as well
    assert "torch.ops.aten" not in result.err  # torch logs the whole graph


def test_no_calibration_data_is_refused_for_int8(package: Run) -> None:
    package("quarters.py:model", "-t", QNNPACK, "-o", "out", base=False).fails(2, "--calibration-data", "fp32")


def test_a_program_that_is_cut_short_is_named(package: Run) -> None:
    Path("half.pt2").write_bytes(b"PK\x03\x04" + bytes(200))
    package("half.pt2", "-t", X86, "-o", "out", "--scheme", "fp32", base=False).fails(
        2, "half.pt2", "torch.export.save"
    )


def test_out_below_a_file_is_refused(package: Run, project: Project) -> None:
    package("--out", "quarters.py/out", "--scheme", "fp32").fails(2, "quarters.py")
    assert (project.root / "quarters.py").is_file()
