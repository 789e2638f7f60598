"""The marks in the annotations of option fields, and how the fields of a configuration table are read.

The options themselves are the fields of `edgeq.core.config.PackageConfig`. Importing this module loads neither pydantic
nor typer, because `edgeq --help` reads the marks.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

STATE_DICT_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt"})

# of a file that lists the shards of a checkpoint: model.safetensors.index.json
INDEX_SUFFIX = ".index.json"

_MODEL_SUFFIXES = frozenset({".py", ".pt2", ".onnx", ".pte", ".ptl", ".pt", ".torchscript", ".jit"})

_Mark = TypeVar("_Mark")


@dataclass(frozen=True, slots=True)
class Doc:
    """What an option does, for --help and docs/options.md.

    Attributes:
        text: one or two sentences.
        default: description of the default, if the field's default does not show it.
    """

    text: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the command line.

    Attributes:
        name: `--out`, or `--cache/--no-cache`; a name without dashes is a positional argument.
        metavar: placeholder of the value in --help; none for a switch.
        short: `-o`.
    """

    name: str
    metavar: str = ""
    short: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """Where --help and docs/options.md list an option.

    Attributes:
        topic: the heading.
        advanced: whether --help lists it after all common options, under a separate heading.
    """

    topic: str
    advanced: bool = False

    @property
    def title(self) -> str:
        """The heading in --help."""
        return f"Advanced: {self.topic.lower()}" if self.advanced else self.topic


@dataclass(frozen=True, slots=True)
class Ge:
    """The value is at least `bound`."""

    bound: float


@dataclass(frozen=True, slots=True)
class Gt:
    """The value is greater than `bound`."""

    bound: float


@dataclass(frozen=True, slots=True)
class Le:
    """The value is at most `bound`."""

    bound: float


@dataclass(frozen=True, slots=True)
class Lt:
    """The value is less than `bound`."""

    bound: float


@dataclass(frozen=True, slots=True)
class MinLen:
    """The list has at least `length` items."""

    length: int


@dataclass(frozen=True, slots=True)
class NotInKey:
    """The option is not part of the cache key, unlike all others.

    Attributes:
        reason: why a result built with another value is still valid.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class InProvenance:
    """The manifest's provenance records the value, since it can change the artifact.

    Attributes:
        schemes: those whose artifacts it can change; None for all.
    """

    schemes: frozenset[str] | None = None


class PathMark:
    """The value is a path, or may be one; the base of all marks of paths.

    A path in edgeq.toml is relative to that file. The content of the file or folder is part of the cache key, unless
    the option is marked `NotInKey`.

    Attributes:
        noun: what the path should be, for messages.
        fix: what to do if it does not exist.
    """

    noun: ClassVar[str] = "file or folder"
    fix: ClassVar[str] = "check the path"

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002  # some marks look for a file there
        """Return whether `text`, which is relative to `folder`, is a path."""
        return True

    def missing(self, text: str) -> str | None:  # noqa: ARG002
        """Return the path in `text` if it should exist but does not; otherwise None.

        Also None where the file's reader has a better message.
        """
        return None

    def contents(self, text: str) -> tuple[str, ...]:
        """Return the files and folders whose content decides what `text` stands for."""
        return (text,)


class InputFile(PathMark):
    """A file that must exist."""

    def missing(self, text: str) -> str | None:
        """Return the file if it does not exist."""
        return None if Path(text).exists() else text


class BundleFolder(PathMark):
    """A bundle that must exist."""

    noun: ClassVar[str] = "bundle"
    fix: ClassVar[str] = "give the folder that `edgeq package` wrote, OUT/<model>/<target>, which has a manifest.json"

    def missing(self, text: str) -> str | None:
        """Return the folder if it has no manifest."""
        return None if (Path(text) / "manifest.json").is_file() else text


class OutputFolder(PathMark):
    """A folder that edgeq writes to, and creates if it does not exist."""


class AppFolder(PathMark):
    """An app's project; `pipeline/plan.py` checks it."""


class KeyFolder(PathMark):
    """A folder of `edgeq keys`, or an Ed25519 public key in hexadecimal."""

    noun: ClassVar[str] = "folder of keys"
    fix: ClassVar[str] = "give a folder that `edgeq keys new` made, or a public key of 64 hexadecimal digits"

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002
        """Return whether `text` is not a key itself."""
        return not is_public_key(text)

    def missing(self, text: str) -> str | None:
        """Return the folder if it has no keys."""
        return None if is_public_key(text) or (Path(text) / "keys.json").is_file() else text


def is_public_key(text: str) -> bool:
    """Whether a text is an Ed25519 public key in hexadecimal."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


class ModelFile(PathMark):
    """A model: `torchvision:NAME`, `pkg.mod:factory`, `file.py:factory` or a file.

    `pipeline/preflight.py` checks it.
    """

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002
        """Recognize a file by its suffix."""
        return Path(text.partition(":")[0]).suffix in _MODEL_SUFFIXES

    def contents(self, text: str) -> tuple[str, ...]:
        """Return the file, or the folder of `hf:FOLDER`."""
        return (text.removeprefix("hf:"),)


class WeightsFile(PathMark):
    """A checkpoint, `FILE` or `FILE#KEY`, or one of torchvision's names of weights."""

    def is_path(self, text: str, folder: Path) -> bool:
        """Recognize a file by a slash, by its suffix, or because it exists."""
        name = text.partition("#")[0]
        named = Path(name).suffix in STATE_DICT_SUFFIXES or name.endswith(INDEX_SUFFIX)
        return "/" in text or named or (folder / name).is_file() or (folder / text).is_file()

    def missing(self, text: str) -> str | None:
        """Return the file if it does not exist."""
        path = weights_file(text)[0]
        return str(path) if self.is_path(text, Path()) and not path.exists() else None

    def contents(self, text: str) -> tuple[str, ...]:
        """Return the file without its key, and the shards that an index lists."""
        path = weights_file(text)[0]
        return (str(path), *map(str, shards_of(path)))


def weights_file(text: str) -> tuple[Path, str | None]:
    """Return the file and the key of `FILE#KEY`; a file whose own name has a `#` is taken whole."""
    name, mark, key = text.rpartition("#")
    return (Path(text), None) if not mark or Path(text).is_file() else (Path(name), key)


def shards_of(path: Path) -> tuple[Path, ...]:
    """Return the files that an index of weights lists, each once, in the index's own folder.

    There are none where the file is not an index, or cannot be read: its reader has the better message.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return ()
    try:
        names = dict.fromkeys(map(str, json.loads(path.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    # a path in it could lead anywhere
    return tuple(path.with_name(Path(name).name or "nameless") for name in names)


class DataPath(PathMark):
    """A file, a folder, `file.py:function` or `pkg.mod:function`."""

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002
        """Return whether `text` starts with a path; Python finds the module of `pkg.mod:function`."""
        head, colon, _ = text.rpartition(":")
        return not colon or head.endswith(".py") or "/" in head

    def missing(self, text: str) -> str | None:
        """Return the file or folder if it does not exist."""
        path = file_part(text)
        return path if path is not None and not Path(path).exists() else None


# scores that need no function of the user's own
BUILT_IN_METRICS = ("mae", "rmse", "f1", "auc", "miou", "map", "perplexity")

# those of them, and the default of two-class models with one output, that take a threshold: accuracy@0.5
_THRESHOLDED = ("accuracy", "f1", "miou")


class MetricPath(DataPath):
    """A built-in metric, `file.py:function` or `pkg.mod:function`."""

    def is_path(self, text: str, folder: Path) -> bool:
        """Return whether `text` starts with a path, and is not a built-in metric's name."""
        return not is_built_in_metric(text) and super().is_path(text, folder)

    def missing(self, text: str) -> str | None:
        """Return the file if it does not exist."""
        return None if is_built_in_metric(text) else super().missing(text)


def is_built_in_metric(text: str) -> bool:
    """Whether a metric is one of `BUILT_IN_METRICS`, or `accuracy@0.5`, `f1@0` and so on."""
    name, mark, _ = text.partition("@")
    return name in _THRESHOLDED if mark else name in BUILT_IN_METRICS


class PresetFile(PathMark):
    """A preset of preprocessing, or a .toml file; its reader checks it."""

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002
        """Return whether `text` is not a preset's name."""
        from edgeq.core.preprocess import PRESETS  # loads pydantic

        return text not in PRESETS


@dataclass(frozen=True, slots=True)
class ProfileFile(PathMark):
    """A shipped profile's name, or a .toml file; its reader checks it."""

    kind: Literal["target", "device"]

    def is_path(self, text: str, folder: Path) -> bool:  # noqa: ARG002
        """Return whether `text` is a .toml file."""
        return text.endswith(".toml")


def file_part(text: str) -> str | None:
    """Return the path in `file.npz` or `file.py:function`; None for `pkg.mod:function`, which needs an import."""
    head, colon, _ = text.rpartition(":")
    if not colon:
        return text
    return head if head.endswith(".py") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A field of a configuration table, with its marks.

    Attributes:
        key: its place in edgeq.toml, `data.num_calibration_samples`, which is its path of attributes as well.
        type: its annotation without the marks.
        default: `dataclasses.MISSING` for an option that must be given.
        marks: those of the field; `NotInKey` of the table that holds it counts for it too.
    """

    key: str
    type: Any
    default: Any
    marks: tuple[Any, ...]

    @property
    def is_table(self) -> bool:
        """Whether the option is a table of options, which follow it."""
        return dataclasses.is_dataclass(self.type)

    @property
    def doc(self) -> Doc | None:
        """What it does; None for a table that has no flag."""
        return self._mark(Doc)

    @property
    def flag(self) -> Flag | None:
        """Its option of the command line; None for one that only edgeq.toml has."""
        return self._mark(Flag)

    @property
    def panel(self) -> Panel | None:
        """The heading it is listed under; None for one that only edgeq.toml has."""
        return self._mark(Panel)

    @property
    def path(self) -> PathMark | None:
        """Which of its values are paths, and to what; None for an option that is never a path."""
        return self._mark(PathMark)

    @property
    def not_in_key(self) -> NotInKey | None:
        """Why it is left out of the cache key; None for one that is part of it."""
        return self._mark(NotInKey)

    @property
    def in_provenance(self) -> InProvenance | None:
        """Which artifacts it can change; None for an option that changes none, or whose hash the provenance has."""
        return self._mark(InProvenance)

    def value_in(self, table: Any) -> Any:
        """Return the option's value in an instance of the table that it was read from."""
        return functools.reduce(getattr, self.key.split("."), table)

    def texts_in(self, table: Any) -> tuple[str, ...]:
        """Return the option's values in an instance of the table, as text; none where it is not given."""
        value = self.value_in(table)
        return tuple(map(str, value)) if isinstance(value, tuple) else () if value is None else (str(value),)

    def _mark(self, kind: type[_Mark]) -> _Mark | None:
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)


def options_of(table: type[object]) -> tuple[Option, ...]:
    """Return the options of a configuration table, each table among them followed by its own options.

    Args:
        table: a dataclass, such as `PackageConfig`; its own fields come before inherited ones.
    """
    return _options_by_table(table)  # type: ignore[arg-type]  # a class is hashable, which mypy does not see


@functools.cache
def _options_by_table(table: Any) -> tuple[Option, ...]:
    hints = get_type_hints(table, include_extras=True)
    own = table.__annotations__
    found: list[Option] = []
    for item in sorted(dataclasses.fields(table), key=lambda item: item.name not in own):
        hint = hints[item.name]
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        found.append(Option(key=item.name, type=kind, default=default, marks=tuple(marks)))
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            shared = tuple(mark for mark in marks if isinstance(mark, NotInKey))
            found += [
                dataclasses.replace(inner, key=f"{item.name}.{inner.key}", marks=(*inner.marks, *shared))
                for inner in options_of(kind)
            ]
    return tuple(found)
