"""An image folder as a data set: plain, or with one subfolder per class."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import UsageError, first_line, nearest
from edgeq.core.lazy import NDArray, np
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, Sample
from edgeq.load.records import Wanted
from edgeq.load.selection import choose, sample_digest

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp")

# images that are not read; a folder where they are many is not the one that was meant
_OTHER_IMAGES = frozenset(
    {
        *(".tif", ".tiff", ".jp2", ".j2k", ".jxl", ".gif", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".dng", ".raw", ".nef", ".cr2", ".arw", ".ico", ".exr", ".hdr", ".dcm", ".mpo", ".apng"),
    }
)

# how the files of most kinds of image begin, whatever their names say: PNG, JPEG, GIF, TIFF, JPEG 2000, JPEG XL, WebP,
# and HEIF with AVIF
_BEGINNINGS = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|\0\0\0\x0c(?:jP  |JXL )|RIFF.{4}WEBP|.{4}ftyp(?:heic|heix|mif1|avif)",
    re.DOTALL,
)

_MOST_OTHER = 0.05

_IMAGE_AXES = 3  # batch, height, width

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
        skip_bad: decode every image that is taken once beforehand, and skip those that fail. Otherwise a bad
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
    # the names of images whose kind is not read
    below = (path for child in _visible(folder) if child.is_dir() for path in _walk(child, _is_other_image))
    found = (*(path for path in _visible(folder) if _is_other_image(path)), *below)
    other = tuple(sorted(_image(folder, path, None).name for path in found))
    total = len(other) + len(files)
    if len(other) > _MOST_OTHER * total and not skip_bad:
        kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in other)
        formats = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        what = f"{folder}: {len(other)} of {total} images have formats that edgeq does not read: {formats}"
        raise UsageError(what, f"convert them to {', '.join(EXTENSIONS)}, or skip them with --skip-bad-images")
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
    if len(specs[0].shape) < _IMAGE_AXES:
        what = f"{folder}: images do not fit input {specs[0].name!r}, which takes {list(specs[0].shape)}"
        raise UsageError(what, "give an .npz or .npy file, or file.py:function")
    if preprocess is None and specs[0].dtype != "uint8":
        what = f"{folder}: images are uint8 0..255, but input {specs[0].name!r} takes {specs[0].dtype}"
        raise UsageError(what, "give the preprocessing: --preprocess imagenet, unit, or a .toml file")


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
        below = tuple(_image(folder, path, child.name) for child in folders for path in _walk(child, _is_image))
    except OSError as err:
        what = f"cannot read image folder {err.filename or folder}: {err.strerror}"
        raise UsageError(what, "check the path and its permissions") from err
    if top and below:
        what = f"{folder} mixes images and class folders: {top[0].name} and {below[0].name}"
        raise UsageError(what, "move all images into class folders, or all into one plain folder")
    if not top and not below:
        raise UsageError(f"no image in {folder}", f"give a folder with {', '.join(EXTENSIONS)} files")
    return tuple(sorted(top or below, key=lambda file: file.path.as_posix()))


def _image(root: Path, path: Path, folder: str | None) -> ImageFile:
    # a name that is no UTF-8 could neither be printed nor written to a report
    name = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")
    return ImageFile(path=path, name=name, folder=folder)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _walk(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, wanted)
        elif wanted(path):
            yield path


def _is_image(path: Path) -> bool:
    # a dangling link counts: it is an image that got lost, and reading it will say so
    return path.suffix.lower() in EXTENSIONS and (path.is_file() or (path.is_symlink() and not path.exists()))


def _is_other_image(path: Path) -> bool:
    """Whether a file is an image, by its name or its first bytes, that `scan` passes over."""
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS or not path.is_file():
        return False
    if suffix in _OTHER_IMAGES:
        return True
    try:
        with path.open("rb") as file:
            return _BEGINNINGS.match(file.read(16)) is not None
    except OSError:
        return False


def decode(path: Path, *, gray: bool) -> NDArray[np.uint8]:
    """Return an image upright as its EXIF orientation says, without its alpha channel.

    Args:
        path: a PNG, JPEG, BMP or WebP file; the first frame counts.
        gray: leave gray images with one channel.

    Returns:
        uint8 [H, W, 3] in RGB, or [H, W, 1] for a gray image where `gray` is set.

    Raises:
        UsageError: the file is not an image, is truncated, too large (a decompression bomb), or not readable.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _pixels(ImageOps.exif_transpose(image), gray)
    except Exception as err:  # decoders raise a dozen types on bad bytes
        fix = "replace or remove it, or skip such images with --skip-bad-images"
        raise UsageError(f"cannot decode image {path}: {_why(err)}", fix) from err


def _why(err: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(err, UnidentifiedImageError):
        return f"it is not an image in one of the formats {', '.join(_FORMATS)}"
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


# --- Class names: which output index a class folder stands for.


_FEW = 3

_MOST_CLASSES = 1_000_000  # a mistyped index must not make a tuple that fills the memory

_FORMS = 'write one name per line, a JSON list of names, or a JSON object {"folder": index}'


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names by output index; "" where the file names none for an index.

    The file is JSON (a list of names by index, or an object from name to index) or text (one name per line).

    Raises:
        UsageError: the file cannot be read, has another form, or gives an index twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise UsageError(f"cannot read labels {path}: {err.strerror}", "check the path and its permissions") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"labels {path}: expected UTF-8 text, got other bytes", _FORMS) from err
    if path.suffix.lower() != ".json" and not text.lstrip().startswith(("{", "[")):
        names = [line.strip() for line in text.rstrip().splitlines()]
        if not names:
            raise UsageError(f"labels {path}: expected one name per line, got an empty file", _FORMS)
        if "" in names:
            raise UsageError(
                f"labels {path}: line {names.index('') + 1} is empty", "name every class, or remove the line"
            )
        return tuple(names)
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as err:
        raise UsageError(f"labels {path} are not valid JSON: {first_line(err)}", _FORMS) from err
    return _from_pairs(path, value.pairs) if isinstance(value, _Pairs) else _from_list(path, value)


class _Pairs:
    """A JSON object as it stands in the file: a dict would drop a name that comes twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _from_list(path: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise UsageError(f"labels {path}: expected class names, got something else", _FORMS)
    return tuple(value)


def _from_pairs(path: Path, pairs: list[tuple[str, Any]]) -> tuple[str, ...]:
    for name, index in pairs:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MOST_CLASSES:
            what = f"labels {path}: {name!r}: expected an output index from 0 on, got {str(index)[:40]}"
            raise UsageError(what, "give each class the index of its output in the model")
    for kind, values in (("name", [name for name, _ in pairs]), ("index", [index for _, index in pairs])):
        twice = [repr(value) for value, times in Counter(values).items() if times > 1]
        if twice:
            raise UsageError(f"labels {path}: {kind} given twice: {few(twice)}", "give each class a distinct index")
    if not pairs:
        raise UsageError(f"labels {path}: expected at least one class, got none", _FORMS)
    by_index = {index: name for name, index in pairs}
    return tuple(by_index.get(i, "") for i in range(max(by_index) + 1))


def repeated_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that stand for more than one output, each with how many: an app cannot tell these apart."""
    return tuple(f"{name!r} ({times} outputs)" for name, times in Counter(names).items() if name and times > 1)


def index_classes(folders: Sequence[str], names: tuple[str, ...] | None, origin: str) -> dict[str, int]:
    """Return the output index of each class folder.

    Args:
        folders: the folders' names.
        names: class names by output index from `read_labels`; None to count the folders in sorted order.
        origin: where the folders are, for messages.

    Raises:
        UsageError: a folder that the labels do not name, or name twice.
    """
    if names is None:
        return {name: i for i, name in enumerate(sorted(folders))}
    times = Counter(names)
    unknown = [name for name in sorted(folders) if not times[name]]
    if unknown:
        what = f"{origin}: class folders that the labels do not name: {few(unknown)}.{nearest(unknown[0], names)}"
        raise UsageError(what, "add them to the --labels file, or rename the folders")
    unclear = [name for name in sorted(folders) if times[name] > 1]
    if unclear:
        what = f"{origin}: class folders that the labels name more than once: {few(unclear)}"
        raise UsageError(what, "give each class a distinct name in the --labels file")
    return {name: names.index(name) for name in folders}


def check_classes(class_names: Sequence[str], n_outputs: int, *, from_file: bool) -> None:
    """Check the classes of a labelled set against the model.

    Args:
        class_names: class names by output index; empty where the set has none.
        n_outputs: how many classes the model's output has.
        from_file: whether a labels file gave the indices. Without one they are the folders' sorted order, which
            only means something when there is a folder for every output.

    Raises:
        UsageError: an index that the model does not have, or folders that are not as many as the outputs.
    """
    if len(class_names) > n_outputs:
        extra = [f"{name} ({i})" for i, name in enumerate(class_names) if i >= n_outputs and name]
        what = f"the model has {n_outputs} outputs, but these classes have larger indices: {few(extra)}"
        raise UsageError(what, "map the classes to output indices with --labels FILE")
    if class_names and not from_file and len(class_names) < n_outputs:
        what = f"the model has {n_outputs} outputs, but the data has {len(class_names)} class folders"
        raise UsageError(what, "map each folder to its output with --labels FILE")


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
