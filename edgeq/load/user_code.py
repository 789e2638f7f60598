"""Functions of the user's own: `file.py:function` and `pkg.mod:function`. They run as trusted code."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from edgeq.core.errors import EdgeqError, UsageError, first_line, nearest
from edgeq.core.lazy import NDArray, np

Metric = Callable[[tuple[NDArray[Any], ...], Any], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A callable of the user's, to be called like the function itself.

    Attributes:
        spec: what the user wrote.
        what: its role ("model factory", "metric"), for messages.
        function: the callable itself.
        module: the module that it came from.
        folder: is first on `sys.path` during import and calls.
    """

    spec: str
    what: str
    function: Callable[..., Any]
    module: ModuleType
    folder: Path

    def __call__(self, *args: Any) -> Any:
        """Return what the function returns.

        Raises:
            UsageError: the function raised; the message has the exception and the line of the user's file.
        """
        with self.guard():
            return self.function(*args)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Let code of the user's run here as in a call, for iterators that the function returned.

        Raises:
            UsageError: the block raised.
        """
        name = getattr(self.module, "__file__", None)  # a module that is built into this Python has none
        file = Path(name) if name else None
        with _on_path(self.folder), _user_errors(f"{self.what} {self.spec}", file):
            yield


def load_function(spec: str, what: str) -> UserFunction:
    """Import `file.py:name` or `pkg.mod:name`; modules are looked for in the current folder too.

    Args:
        spec: what the user wrote.
        what: its role ("model factory", "metric"), for messages.

    Raises:
        UsageError: no such file, module or function (the nearest name is offered), or the import raises.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"{what}: expected file.py:function or pkg.mod:function, got {spec!r}", "name the function")
    is_file = (place.endswith(".py") or "/" in place) and "\0" not in place
    folder = Path(place).absolute().parent if is_file else Path.cwd()
    with _on_path(folder):
        module = _import_file(Path(place), f"{what} {spec}") if is_file else _import_module(place, f"{what} {spec}")
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        fix = f"it has: {', '.join(sorted(known)[:10])}" if known else "define it there"
        raise UsageError(f"{what}: no {name!r} in {place}.{nearest(name, known)}", fix)
    if not callable(function):
        raise UsageError(f"{what}: expected {spec} to be a function, got {type(function).__name__}", "name a function")
    return UserFunction(spec=spec, what=what, function=function, module=module, folder=folder)


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is now, and leaves no __pycache__ beside it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import_file(path: Path, label: str) -> ModuleType:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise UsageError(f"{label}: cannot read {path}: {err.strerror}", "check the path and its permissions") from err
    # unique, so that a file called random.py hides no module; by content, so that a changed file is loaded again
    digest = hashlib.sha256(str(path.absolute()).encode(errors="replace") + b"\0" + content).hexdigest()[:16]
    name = f"_edgeq_user_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _FreshLoader(name, str(path.absolute()))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=loader.path))
    module.__file__ = loader.path
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        with _user_errors(label, path.absolute()):
            loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(name: str, label: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{label}: {name!r} is not a module name", "write file.py:function or pkg.mod:function")
    importlib.invalidate_caches()
    try:
        with _user_errors(label, None):
            return importlib.import_module(name)
    except UsageError as err:
        cause = err.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            fix = "install it, run where it can be imported, or write file.py:function"
            raise UsageError(f"{label}: no module {cause.name!r}", fix) from cause
        raise


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


@contextlib.contextmanager
def _user_errors(label: str, file: Path | None) -> Iterator[None]:
    try:
        yield
    except EdgeqError:
        raise
    except (Exception, SystemExit) as err:
        what = f"{label} raised {type(err).__name__}{_where(err, file)}: {first_line(err)}"
        raise UsageError(what, "fix the function and run again; --debug shows the whole traceback") from err


def _where(err: BaseException, file: Path | None) -> str:
    """Return the last line of the user's file that the error passed, or else the line that raised."""
    if isinstance(err, SyntaxError) and err.filename and err.lineno:
        return f" at {Path(err.filename).name}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    theirs = own or [frame for frame in frames if not frame.filename.startswith("<") and frame.filename != __file__]
    return f" at {Path(theirs[-1].filename).name}:{theirs[-1].lineno}" if theirs else ""


def check_arguments(function: UserFunction, count: int, meaning: str) -> None:
    """Check that a function can be called with `count` positional arguments.

    Raises:
        UsageError: it cannot; the message says what they mean.
    """
    try:
        signature = inspect.signature(function.function)
    except (TypeError, ValueError):
        return  # some built-in callables have no signature
    try:
        signature.bind(*range(count))
    except TypeError as err:
        name = function.spec.rpartition(":")[2]
        what = f"{function.what} {function.spec}: expected the signature {name}({meaning}), got {name}{signature}"
        raise UsageError(what, "fix its parameters") from err


class OfSet(NamedTuple):
    """A user's metric that makes one score of the whole set.

    Attributes:
        row: makes numbers, as many for each sample, of its outputs and its label, or any number of such lines.
        score: makes a score of the lines of all samples, [lines, numbers].
    """

    row: Callable[[tuple[NDArray[Any], ...], Any], tuple[float, ...] | NDArray[np.float64]]
    score: Callable[[NDArray[np.float64]], float]


def load_metric(spec: str) -> Metric | OfSet:
    """Return the user's metric: `score(outputs, label) -> float`, called for each sample, or one of the whole set.

    `outputs` holds an array for each model output, without the batch axis; higher scores are better. A class that is
    made without arguments and has the methods `row(outputs, label)` and `score(rows)` is one of the set.

    Raises:
        UsageError: it cannot be imported, or called so; later, when it raises or returns no finite number.
    """
    function = load_function(spec, "metric")
    if isinstance(function.function, type):
        check_arguments(function, 0, "")
        users = function()
        parts = []
        for name, count, meaning in (("row", 2, "outputs, label"), ("score", 1, "rows")):
            method = getattr(users, name, None)
            if not callable(method):
                what = f"metric {spec}: expected the methods row(outputs, label) and score(rows), but {name} is missing"
                raise UsageError(what, "add it, or name a function that scores one sample")
            parts.append(dataclasses.replace(function, function=method, spec=f"{spec}.{name}"))
            check_arguments(parts[-1], count, meaning)
        return _of_set(*parts)
    check_arguments(function, 2, "outputs, label")
    return lambda outputs, label: _number(function(outputs, label), f"metric {spec}", "for each sample")


def _of_set(row: UserFunction, score: UserFunction) -> OfSet:
    width: int | None = None

    def checked(outputs: tuple[NDArray[Any], ...], label: Any) -> tuple[float, ...] | NDArray[np.float64]:
        nonlocal width
        given = row(outputs, label)
        try:
            lines = isinstance(given, Sequence | np.ndarray) and len(given) and np.ndim(given[0]) == 1
            found = np.asarray(given, np.float64) if lines else np.asarray(tuple(map(float, given)))
        except (TypeError, ValueError, RuntimeError) as err:
            what = f"metric {row.spec}: expected numbers for each sample, got {type(given).__name__}"
            fix = "return a tuple of floats, such as (errors, words), or lines of such, as many numbers in each"
            raise UsageError(what, fix) from err
        if not np.isfinite(found).all():
            raise UsageError(f"metric {row.spec}: expected finite numbers, got {found}", "return no NaN or Inf")
        if found.size and width not in (None, found.shape[-1]):
            what = f"metric {row.spec}: expected {width} numbers as for the samples before, got {found.shape[-1]}"
            raise UsageError(what, "return as many for each sample")
        width = found.shape[-1] if found.size else width
        return found if lines else tuple(found.tolist())

    return OfSet(checked, lambda rows: _number(score(rows), f"metric {score.spec}", "for the set"))


def _number(given: Any, metric: str, of: str) -> float:
    """Return what a metric gave as a float; a set may have no score, which is NaN.

    Raises:
        UsageError: it is no number, or one without end.
    """
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError) as err:
        what = f"{metric}: expected a number {of}, got {type(given).__name__}"
        raise UsageError(what, "return one float") from err
    if not math.isfinite(value) and not (of == "for the set" and math.isnan(value)):
        raise UsageError(f"{metric}: expected a finite number, got {value}", "return a score, not NaN or Inf")
    return value
