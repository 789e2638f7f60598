from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.core.errors import UsageError
from edgeq.core.preprocess import PRESETS, Preprocess, apply, load_preprocess, output_size

RAW = Preprocess(scale=1, layout="NHWC")


def image(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def changed(spec: Preprocess, **values: object) -> Preprocess:
    return Preprocess.model_validate(spec.model_dump() | values)


@pytest.mark.parametrize(
    ("came", "size"),
    [
        ((32, 32), (16, 16)),
        ((8, 8), (32, 32)),
        ((37, 61), (224, 224)),
        ((480, 640), (256, 341)),
        ((301, 200), (17, 333)),
        ((5, 5), (5, 9)),
        ((1, 1), (4, 4)),
        ((2, 9), (1, 1)),
    ],
)
def test_resize_equals_torchs_bilinear(came: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = image(*came)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    expected = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=False)
    found = apply(Preprocess(resize=size), pixels)
    assert found.shape == (3, *size)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("came", "resize", "expected"),
    [
        ((480, 640), 256, (256, 341)),
        ((640, 480), 256, (341, 256)),
        ((100, 100), 7, (7, 7)),
        ((100, 50), (3, 4), (3, 4)),
        ((100, 50), None, (100, 50)),
    ],
)
def test_a_single_number_is_the_shorter_side(
    came: tuple[int, int], resize: int | tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert output_size(*came, resize) == expected
    assert apply(changed(RAW, resize=resize), image(*came)).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("came", "crop", "top", "left"), [((6, 8), (2, 4), 2, 2), ((7, 7), (4, 4), 1, 1), ((5, 5), (5, 5), 0, 0)]
)
def test_crop_takes_the_centre(came: tuple[int, int], crop: tuple[int, int], top: int, left: int) -> None:
    pixels = image(*came)
    expected = pixels[top : top + crop[0], left : left + crop[1]]
    np.testing.assert_array_equal(apply(changed(RAW, crop=crop), pixels), expected)


def test_a_crop_that_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="cannot crop 9x4 from 8x8"):
        apply(changed(RAW, crop=(9, 4)), image(8, 8))


def test_gray_follows_bt_601() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    found = apply(changed(RAW, color="gray"), pixels)
    np.testing.assert_allclose(found[0, :, 0], [76.245, 149.685, 29.07, 255], atol=1e-3)
    gray = image(4, 4, 1)
    np.testing.assert_array_equal(apply(changed(RAW, color="gray"), gray), gray)


def test_gray_images_become_rgb() -> None:
    gray = image(4, 5, 1)
    np.testing.assert_array_equal(apply(RAW, gray), np.concatenate([gray] * 3, axis=2))


def test_scale_then_mean_then_std_then_layout() -> None:
    pixels = image(4, 5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    last = apply(Preprocess(mean=mean, std=std, layout="NHWC"), pixels)
    np.testing.assert_allclose(last, (pixels / 255 - mean) / std, atol=1e-6)
    first = apply(Preprocess(mean=mean, std=std, layout="NCHW"), pixels)
    assert first.shape == (3, 4, 5)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, last.transpose(2, 0, 1))


def test_bytes_are_the_pixels_rounded_half_up_and_a_manifest_says_so() -> None:
    spec = Preprocess(resize=(2, 1)).as_bytes
    image = np.array([[[10], [11]], [[250], [255]]], np.uint8).repeat(3, axis=2)
    made = apply(spec, image)
    assert made.dtype == np.uint8
    assert made[0].tolist() == [[11], [253]]
    assert spec.value_range == (0, 255)
    assert spec.model_dump(mode="json")["dtype"] == "uint8"
    # an app of before refuses keys that it does not know
    assert "dtype" not in Preprocess().model_dump(mode="json")
    with pytest.raises(ValueError, match="allows no arithmetic"):
        Preprocess(dtype="uint8")


def test_imagenet_is_what_torchvisions_reference_does() -> None:
    pixels = image(300, 400)
    found = apply(PRESETS["imagenet"], pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(tensor, size=(256, 341), mode="bilinear", align_corners=False)
    cropped = resized[0, :, 16:240, 58:282]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (cropped - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


CHANNELS = st.lists(st.floats(-2, 2), min_size=1, max_size=1) | st.lists(st.floats(-2, 2), min_size=3, max_size=3)
SCALES = st.lists(st.floats(0.01, 4), min_size=1, max_size=1) | st.lists(st.floats(0.01, 4), min_size=3, max_size=3)
SIDES = st.integers(1, 40)


@settings(max_examples=100)
@given(
    came=st.tuples(SIDES, SIDES),
    resize=st.none() | st.tuples(SIDES, SIDES),
    mean=CHANNELS,
    std=SCALES,
    scale=st.floats(1e-3, 2),
    seed=st.integers(0, 9),
)
def test_no_pixel_leaves_the_range(
    came: tuple[int, int],
    resize: tuple[int, int] | None,
    mean: list[float],
    std: list[float],
    scale: float,
    seed: int,
) -> None:
    spec = Preprocess(resize=resize, mean=tuple(mean), std=tuple(std), scale=scale)
    pixels = image(*came, seed=seed)
    pixels[0, 0] = (0, 255, 0)
    found = apply(spec, pixels)
    low, high = spec.value_range
    slack = 1e-5 * (high - low) + 1e-4 * max(abs(low), abs(high))
    assert low - slack <= found.min()
    assert found.max() <= high + slack


def test_the_range_is_reached() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    spec = PRESETS["imagenet"].model_copy(update={"resize": None, "crop": None})
    found = apply(spec, pixels)
    np.testing.assert_allclose((found.min(), found.max()), spec.value_range, rtol=1e-6)


def test_presets_and_files(tmp_path: Path) -> None:
    assert load_preprocess("imagenet") is PRESETS["imagenet"]
    path = tmp_path / "mine.toml"
    path.write_text('color = "gray"\nresize = [32, 32]\nmean = [0.5]\nstd = [0.25]\n')
    spec = load_preprocess(str(path))
    assert (spec.color, spec.resize, spec.value_range) == ("gray", (32, 32), (-2.0, 2.0))


@pytest.mark.parametrize("size", [None, 256, (256, 341)])
def test_a_size_is_read_from_json_as_it_was_written(size: int | tuple[int, int] | None) -> None:
    spec = Preprocess(resize=size)
    assert Preprocess.model_validate_json(spec.model_dump_json(), strict=True) == spec


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("[110]", "110"),
        ("[110, 110, 110]", "110"),
        ("[]", "224"),
        ('"110"', "224"),
        ("true", "224"),
        ("[0, 5]", "224"),
        ("16385", "224"),
        ("1.5", "224"),
    ],
)
def test_a_wrong_size_is_one_error_that_says_both_forms(tmp_path: Path, text: str, side: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"resize = {text}")
    with pytest.raises(UsageError) as caught:
        load_preprocess(str(path))
    assert caught.value.what.startswith(
        f"{path}: resize: give {side} or [height, width], with sides of 1 to 16384, got "
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 'gray'", "unknown key 'colour'. Did you mean 'color'"),
        ("mean = [1.0, 2.0]", "mean has 2 values, expected 1 or 3"),
        ("color = 'gray'\nstd = [1.0, 1.0, 1.0]", "std has 3 values, expected 1 or 1"),
        ("std = [0.0]", "std must be positive"),
        ("scale = 0", "scale"),
        ("scale = inf", "scale"),
        ("scale = nan", "scale"),
        ("mean = [-inf]", r"mean\.0"),
        ("std = [0.5, nan, 0.5]", r"std\.1"),
        ("std = [inf]", r"std\.0"),
        ("crop = [0, 5]", r"crop\.0"),
        ("layout = 'CHW'", "layout"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why) as caught:
        load_preprocess(str(path))
    assert str(path) in caught.value.what


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        load_preprocess("imagnet")
