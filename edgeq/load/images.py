"""An image folder as a data set: plain, or a class a sub-folder."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError, first_line
from edgeq.load.digest import sample_digest
from edgeq.load.labels import few, index_classes
from edgeq.load.records import Wanted
from edgeq.load.selection import choose
from edgeq.preprocess import Preprocess, apply
from edgeq.samples import Dataset, Sample

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# images that are not read; a folder where they are many is not the one that was meant
_OTHER_IMAGES = frozenset(
    (
        ".tif",
        ".tiff",
        ".jfif",
        ".jpe",
        ".jp2",
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".ppm",
        ".pgm",
        ".pnm",
        ".tga",
        ".dng",
    )
)
_MOST_OTHER = 0.05
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow's other decoders are not for data from outside


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image on disk.

    Attributes:
        path: the file.
        name: its path inside the folder, for messages.
        folder: its class folder, or None in a plain folder.
    """

    path: Path
    name: str
    folder: str | None


def open_images(folder: Path, wanted: Wanted, *, skip_bad: bool) -> tuple[Dataset, tuple[str, ...]]:
    """Return the images of a folder as samples, and the names of those that were skipped.

    Args:
        folder: holds images, or a folder for each class.
        wanted: how many, evenly from all classes, for a model with one input; without preprocessing the model itself
            takes uint8 [H, W, C], and without class names the folders are counted in sorted order.
        skip_bad: decode every image that is taken once beforehand, and leave out those that fail. Otherwise a bad
            image raises when it is read.

    Raises:
        UsageError: no image, an unreadable folder, classes that the labels do not name, or a model that images
            cannot feed.
    """
    preprocess, labels = wanted.reading.preprocess, wanted.class_names
    _check_model(folder, wanted.reading.specs, preprocess)
    files = scan(folder)
    folders = sorted({file.folder for file in files if file.folder is not None})
    index = _index(folder, folders, labels)
    gray = preprocess is not None and preprocess.color == "gray"
    other = _other_images(folder, files, skip_bad=skip_bad)
    chosen, skipped = _chosen(files, folder, wanted, gray=gray, skip_bad=skip_bad)

    def read(i: int) -> Sample:
        file = files[chosen[i]]
        raw = decode(file.path, gray=gray)
        pixels = raw if preprocess is None else apply(preprocess, raw)
        label = None if file.folder is None else index[file.folder]
        return Sample(inputs=(pixels,), raw=(raw,), label=label, name=file.name, digest=sample_digest((raw,)))

    names = labels if labels is not None else tuple(folders)
    data = Dataset(
        origin=str(folder), count=len(chosen), read=read, class_names=names if folders else (), labelled=bool(folders)
    )
    return data, (*skipped, *other)


def _other_images(folder: Path, files: Sequence[ImageFile], *, skip_bad: bool) -> tuple[str, ...]:
    """Return the names of images whose kind is not read.

    Raises:
        UsageError: they are more than a few, and were not said to be skipped.
    """
    below = (path for child in _visible(folder) if child.is_dir() for path in _walk(child, _OTHER_IMAGES))
    found = (*(path for path in _visible(folder) if path.suffix.lower() in _OTHER_IMAGES), *below)
    names = tuple(sorted(_image(folder, path, None).name for path in found))
    total = len(names) + len(files)
    if len(names) > _MOST_OTHER * total and not skip_bad:
        kinds = Counter(Path(name).suffix.lower() for name in names)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        what = f"{folder}: {len(names)} of {total} images are of kinds that are not read: {told}"
        raise UsageError(what, f"convert them to {', '.join(EXTENSIONS)}, or leave them out: --skip-bad-images")
    return names


def _chosen(
    files: Sequence[ImageFile], folder: Path, wanted: Wanted, *, gray: bool, skip_bad: bool
) -> tuple[Sequence[int], tuple[str, ...]]:
    """Return the indices of the images to take, evenly from all classes, and the names of those that fail."""
    skipped: list[str] = []

    def usable(i: int) -> bool:
        try:
            decode(files[i].path, gray=gray)
        except UsageError:
            skipped.append(files[i].name)
            return False
        return True

    classes = [file.folder for file in files] if any(file.folder is not None for file in files) else None
    asked = usable if skip_bad else lambda _: True
    chosen = choose(len(files), limit=wanted.limit, seed=wanted.seed, classes=classes, usable=asked)
    if not chosen:
        raise UsageError(f"{folder}: no image could be decoded: {few(skipped)}", "replace the bad images")
    return chosen, tuple(sorted(skipped))


def _check_model(folder: Path, specs: Sequence[TensorSpec], preprocess: Preprocess | None) -> None:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        what = f"{folder}: images feed one input, but the model has {len(specs)}: {names}"
        raise UsageError(what, "give an .npz with an array for each input, or file.py:function")
    if preprocess is None and specs[0].dtype != "uint8":
        what = f"{folder}: images are uint8 0..255, but input {specs[0].name!r} takes {specs[0].dtype}"
        raise UsageError(what, "say how images become inputs: --preprocess imagenet, unit, or a .toml file")


def _index(folder: Path, folders: list[str], labels: tuple[str, ...] | None) -> dict[str, int]:
    index = index_classes(folders, labels, str(folder))
    if folders and labels is None:
        # it would take an index that torchvision's ImageFolder, and so perhaps the training, gave to another class
        empty = sorted(child.name for child in _visible(folder) if child.is_dir() and child.name not in index)
        if empty:
            what = f"{folder}: class folders without an image: {few(empty)}"
            raise UsageError(what, "add images, remove the folders, or map the classes with --labels FILE")
    return index


def scan(folder: Path) -> tuple[ImageFile, ...]:
    """Return the images of a folder, sorted by path. Hidden files and other files are passed over.

    Raises:
        UsageError: the folder cannot be read, holds no image, or holds images beside class folders.
    """
    try:
        top = tuple(_image(folder, path, None) for path in _visible(folder) if _is_image(path))
        folders = (path for path in _visible(folder) if path.is_dir())
        below = tuple(_image(folder, path, child.name) for child in folders for path in _walk(child))
    except OSError as err:
        what = f"cannot read image folder {err.filename or folder}: {err.strerror}"
        raise UsageError(what, "check the path and its permissions") from err
    if top and below:
        what = f"{folder}: images beside class folders: {top[0].name} and {below[0].name}"
        raise UsageError(what, "move the images into class folders, or all into one plain folder")
    if not top and not below:
        raise UsageError(f"no image in {folder}", f"give a folder with {', '.join(EXTENSIONS)} files")
    return tuple(sorted(top or below, key=lambda file: file.path.as_posix()))


def _image(root: Path, path: Path, folder: str | None) -> ImageFile:
    # a name that is no UTF-8 could neither be printed nor written to a report
    name = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")
    return ImageFile(path=path, name=name, folder=folder)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _walk(folder: Path, suffixes: Collection[str] = EXTENSIONS) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, suffixes)
        elif _is_image(path, suffixes):
            yield path


def _is_image(path: Path, suffixes: Collection[str] = EXTENSIONS) -> bool:
    # a dangling link counts: it is an image that got lost, and reading it will say so
    return path.suffix.lower() in suffixes and (path.is_file() or (path.is_symlink() and not path.exists()))


def decode(path: Path, *, gray: bool) -> NDArray[np.uint8]:
    """Return an image upright as its EXIF orientation says, without its alpha channel.

    Args:
        path: a PNG, JPEG, BMP or WebP file; the first frame counts.
        gray: leave gray images with one channel.

    Returns:
        uint8 [H, W, 3] in RGB, or [H, W, 1] for a gray image where `gray` is set.

    Raises:
        UsageError: no image, truncated, too large (a decompression bomb), or not readable.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _pixels(ImageOps.exif_transpose(image), gray)
    except Exception as err:  # decoders raise a dozen types on bad bytes
        fix = "replace or remove it, or leave such images out: --skip-bad-images"
        raise UsageError(f"cannot decode image {path}: {_why(err)}", fix) from err


def _why(err: Exception) -> str:
    if isinstance(err, UnidentifiedImageError):
        return f"it is no image of {', '.join(_FORMATS)}"
    return err.strerror if isinstance(err, OSError) and err.strerror else first_line(err)


def _pixels(image: Image.Image, gray: bool) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        # 16 bits: the high byte, as Pillow itself does for colour; its own conversion to 8 bits clips at 255
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return high[..., None] if gray else np.repeat(high[..., None], 3, axis=2)
    if gray and image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))[..., None]
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
