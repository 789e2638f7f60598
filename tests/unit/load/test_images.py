from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.model import TensorSpec
from edgeq.load.images import decode, open_images, scan
from edgeq.load.records import Reading, Wanted

PREPROCESS = Preprocess(resize=(16, 16))


def opened(folder, *specs, preprocess=PREPROCESS, labels=None, limit=None, seed=0, skip_bad=False):
    reading = Reading(specs=specs, preprocess=preprocess)
    wanted = Wanted(reading=reading, limit=limit, seed=seed, class_names=labels)
    return open_images(folder, wanted, skip_bad=skip_bad)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture
def classes(tmp_path, paint):
    """Three classes of 8, 4 and 2 images."""
    for name, count in (("cat", 8), ("ant", 4), ("bee", 2)):
        for i in range(count):
            paint(tmp_path / "set" / name / f"{i}.png", ord(name[0]) - 97 + 10 * i)
    return tmp_path / "set"


def test_a_plain_folder_is_read_in_order_without_labels(tmp_path, paint, image_input):
    for i, name in enumerate(["b.PNG", "a.jpg", "c.bmp", "d.webp", "e.jpeg"]):
        paint(tmp_path / name, i)
    for other in (".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / other).write_text("no image")
    (tmp_path / "empty").mkdir()
    data, skipped = opened(tmp_path, image_input)
    assert [sample.name for sample in data] == ["a.jpg", "b.PNG", "c.bmp", "d.webp", "e.jpeg"]
    assert skipped == ()
    assert not data.labelled
    assert data.class_names == ()
    sample = data.read(1)
    assert sample.label is None
    assert sample.raw[0].shape == (20, 24, 3)
    np.testing.assert_array_equal(sample.inputs[0], apply(PREPROCESS, sample.raw[0]))


def test_class_folders_give_labels_by_sorted_name(classes, image_input):
    data, _ = opened(classes, image_input)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.labelled
    assert data.count == 14
    assert {sample.name.split("/")[0]: sample.label for sample in data} == {"ant": 0, "bee": 1, "cat": 2}


def test_a_labels_file_gives_other_indices(classes, image_input):
    labels = ("cat", "", "bee", "ant", "dog")
    data, _ = opened(classes, image_input, labels=labels)
    assert {sample.name.split("/")[0]: sample.label for sample in data} == {"ant": 3, "bee": 2, "cat": 0}
    assert data.class_names == labels
    with pytest.raises(UsageError, match="do not name: cat"):
        opened(classes, image_input, labels=("ant", "bee"))


def test_a_limit_takes_evenly_from_all_classes(classes, image_input):
    data, _ = opened(classes, image_input, limit=6, seed=3)
    assert [sample.label for sample in data] == [0, 0, 1, 1, 2, 2]
    again, _ = opened(classes, image_input, limit=6, seed=3)
    assert [sample.digest for sample in data] == [sample.digest for sample in again]


def test_images_below_a_class_folder_belong_to_it(tmp_path, paint):
    paint(tmp_path / "cat" / "deep" / "er" / "x.png")
    paint(tmp_path / "cat" / ".hidden" / "y.png")
    assert [(file.name, file.folder) for file in scan(tmp_path)] == [("cat/deep/er/x.png", "cat")]


def test_an_empty_folder_is_named_with_the_extensions(tmp_path):
    (tmp_path / "notes.gif").write_text("")
    with pytest.raises(UsageError, match="no image in") as caught:
        scan(tmp_path)
    assert str(tmp_path) in caught.value.what
    assert ".webp" in caught.value.fix
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("inner", [False, True])
def test_an_unreadable_folder_is_named(tmp_path, paint, monkeypatch, inner):
    paint(tmp_path / "cat" / "x.png")
    barred, real = tmp_path / "cat" if inner else tmp_path, Path.iterdir

    def iterdir(self):
        if self == barred:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UsageError, match="Permission denied") as caught:
        scan(tmp_path)
    assert str(barred) in caught.value.what


def test_images_beside_class_folders_are_refused(classes, paint):
    paint(classes / "stray.png")
    with pytest.raises(UsageError, match=r"mixes images and class folders: stray.png and ant/0.png"):
        scan(classes)


def test_a_class_folder_without_images_would_shift_the_indices(classes, image_input):
    (classes / "bat").mkdir()
    with pytest.raises(UsageError, match="without an image: bat"):
        opened(classes, image_input)
    data, _ = opened(classes, image_input, labels=("ant", "bat", "bee", "cat"))
    assert data.read(0).label == 0


@pytest.mark.parametrize("name", ["3.png", "3.jpg", "3.webp", "3.bmp"])
def test_a_truncated_image_is_named_or_skipped(tmp_path, paint, image_input, name):
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    truncate(paint(tmp_path / name, 3))
    data, _ = opened(tmp_path, image_input)
    with pytest.raises(UsageError) as caught:
        list(data)
    assert str(tmp_path / name) in caught.value.what
    assert "--skip-bad-images" in caught.value.fix
    data, skipped = opened(tmp_path, image_input, skip_bad=True)
    assert skipped == (name,)
    assert len(list(data)) == 3


def test_a_good_image_takes_the_place_of_a_skipped_one(tmp_path, paint, image_input):
    for i in range(10):
        paint(tmp_path / f"{i}.png", i)
    for i in range(5):
        truncate(tmp_path / f"{i}.png")
    data, skipped = opened(tmp_path, image_input, skip_bad=True, limit=5)
    assert len(list(data)) == 5
    assert set(skipped) <= {f"{i}.png" for i in range(5)}


def test_only_bad_images_are_an_error_even_when_skipped(tmp_path, image_input):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"no image could be decoded: a\.png"):
        opened(tmp_path, image_input, skip_bad=True)


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n" + bytes(60), bytes(1000)])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match="cannot decode image"):
        decode(tmp_path / "a.png", gray=False)


def test_a_dangling_link_is_named(tmp_path, image_input):
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    data, _ = opened(tmp_path, image_input)
    with pytest.raises(UsageError, match=r"lost\.png: No such file"):
        data.read(0)


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_decompression_bomb_is_refused(tmp_path, side):
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, b"IDAT")
    ]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(UsageError, match="decompression bomb"):
        decode(tmp_path / "bomb.png", gray=False)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (30, 10), "red").save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg", gray=False).shape == (30, 10, 3)


@pytest.mark.parametrize(
    ("mode", "gray", "channels"),
    [
        ("L", True, 1),
        ("L", False, 3),
        ("RGB", True, 3),
        ("LA", True, 1),
        ("1", True, 1),
        ("RGBA", False, 3),
        ("P", True, 3),
    ],
)
def test_channels_by_mode(tmp_path, paint, mode, gray, channels):
    pixels = decode(paint(tmp_path / "a.png", 5, mode), gray=gray)
    assert pixels.shape == (20, 24, channels)
    assert pixels.dtype == np.uint8


def test_gray_images_feed_a_gray_model(tmp_path, paint):
    paint(tmp_path / "a.png", 1, "L")
    paint(tmp_path / "b.png", 1, "RGB")
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1, 16, 16))
    data, _ = opened(tmp_path, spec, preprocess=Preprocess(resize=(16, 16), color="gray"))
    assert [sample.raw[0].shape[2] for sample in data] == [1, 3]
    assert {sample.inputs[0].shape for sample in data} == {(1, 16, 16)}
    assert np.abs(data.read(0).inputs[0] - data.read(1).inputs[0]).max() <= 1 / 255


def test_alpha_is_dropped(tmp_path):
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", gray=False)[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("gray", [True, False])
def test_16_bit_images_keep_their_high_byte(tmp_path, gray):
    Image.fromarray(np.full((4, 4), 0x8034, np.uint16)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", gray=gray)
    assert pixels.shape[2] == (1 if gray else 3)
    assert (pixels == 0x80).all()


def test_images_need_a_preprocessing_unless_the_model_takes_pixels(tmp_path, paint, image_input):
    paint(tmp_path / "a.png")
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, image_input, preprocess=None)
    assert "--preprocess" in caught.value.fix
    pixels = TensorSpec(name="x", dtype="uint8", shape=(1, 20, 24, 3))
    data, _ = opened(tmp_path, pixels, preprocess=None)
    np.testing.assert_array_equal(data.read(0).inputs[0], data.read(0).raw[0])


def test_images_feed_one_input_only(tmp_path, paint, image_input):
    paint(tmp_path / "a.png")
    with pytest.raises(UsageError, match="the model has 2: image, other"):
        opened(tmp_path, image_input, TensorSpec(name="other", dtype="float32", shape=(1,)))


def test_a_vector_takes_no_images(tmp_path, paint):
    paint(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"images do not fit input 'x', which takes \[1, 16\]") as caught:
        opened(tmp_path, TensorSpec(name="x", dtype="float32", shape=(1, 16)), preprocess=None)
    assert caught.value.fix == "give an .npz or .npy file, or file.py:function"


@pytest.mark.parametrize("name", ["b.tif", "b.TIFF", "b", "b.jpg.part", "b.data"])
def test_an_image_of_a_kind_that_is_not_read_is_found_by_its_name_or_its_first_bytes(tmp_path, name, image_input):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    image.save(tmp_path / "a.png")
    with (tmp_path / name).open("wb") as file:
        image.save(file, "TIFF" if "tif" in name.lower() else "JPEG")
    (tmp_path / "notes.txt").write_text("two images")
    (tmp_path / "boxes").write_bytes(b"no image")
    with pytest.raises(UsageError, match="1 of 2 images have formats that edgeq does not read"):
        opened(tmp_path, image_input)
    data, skipped = opened(tmp_path, image_input, skip_bad=True)
    assert (data.count, skipped) == (1, (name,))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG"])
def test_every_name_of_jpeg_is_read(tmp_path, suffix, image_input):
    with (tmp_path / f"a{suffix}").open("wb") as file:
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "JPEG")
    assert opened(tmp_path, image_input)[0].count == 1
