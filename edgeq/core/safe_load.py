"""Torch's own files, read so that nothing in them runs unless the user trusts it.

An exported program is a graph in JSON beside tensors, yet `torch.export.load` and `ExportedProgram.module()` run what a
crafted one says in six ways (torch 2.6 to 2.15):

- pickled sample inputs, weights and constants (`torch.load(weights_only=False)`, `pickle.loads`);
- symbolic sizes, which `sympy.sympify` evaluates as Python;
- guards, which `torch.export._unlift` executes as Python;
- operators, which are any attribute below `torch`, `math` or `operator` (`torch.os.system`);
- names of inputs, nodes and weights, which torch.fx writes into Python source;
- the structure of inputs, whose JSON imports modules by name.

So the objects that torch is about to read are checked themselves, instead of a separate parse of the file, which could
differ from torch's. What is not known to be harmless is refused.

TorchScript archives (.pt, .ptl) need no trust: their pickles are read in C++ and build tensors and the archive's own
classes only, and their code is TorchScript, which cannot import Python. It does have operators that open files by name;
an archive that mentions one is refused, and so is one that may hide the mention.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import logging
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeq.core.errors import UsageError
from edgeq.core.system import replaced

TRUST_OPTION = "--trust-source"

# the schema's fields that hold names which torch.fx writes into Python source
_NAMES = frozenset({"name", "as_name", "forward_arg_names", "user_input_name", "field_names"})

_VALUES = frozenset({"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"})

# names of modules, parameters and buffers, quoted in that source where they are no identifiers
_QUALIFIED = frozenset({"fqn", "parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "class_fqn"})

_SAFE_QUALIFIED = re.compile(r"[^\x00-\x1f\x7f\"'\\(){}]*")

_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?")

_BUILT_IN = re.compile(
    r"_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert|lshift"
    r"|rshift|getitem)"
    r"|math\.(?:ceil|floor|trunc|sqrt|pow|exp|log|log2)"
    r"|torch\.sym_(?:int|float|not|max|min|ite|sum|sqrt|fresh_size)"
)

# of torch.ops.higher_order: those that only run the graphs they are given
_CONTROL_FLOW = frozenset(
    {
        *("cond", "while_loop", "map", "map_impl", "scan", "associative_scan", "checkpoint", "flex_attention"),
        *("wrap_with_set_grad_enabled", "wrap_with_autocast", "invoke_subgraph", "tag_activation_checkpoint"),
    }
)

# operators that open a file by its name (of all that torch 2.15 and torchvision register)
_FILE_OPERATORS = {
    *(("aten", "from_file"), ("aten", "save"), ("image", "read_file"), ("image", "write_file")),
    ("debugprims", "load_tensor"),
}

# the same in the tables of bytecode (SPACE::NAME)
_FILE_CALLS = re.compile("|".join(rf"\b{space}::{name}\b" for space, name in sorted(_FILE_OPERATORS)))

# in TorchScript source, where any name may stand for `torch` or `ops` (t = torch; t.save), the last part alone
_FILE_NAMES = frozenset(name for _, name in _FILE_OPERATORS)

_FILE_WORDS = re.compile(rf"\b(?:{'|'.join(sorted(_FILE_NAMES))})\b")

# C++ classes whose objects are in archives; others, such as torchvision's Video, may open files
_CLASSES = re.compile(r"\bclasses\s*\.\s*(?!(?:quantized|xnnpack|rnn|sparse|mkldnn|vulkan|metal)\b)\w+")

_SYMBOL = re.compile(r"[a-z]{1,3}\d+")

# sympy's repr: Symbol('s77', positive=True, integer=True); elsewhere a string would be evaluated in its turn
_ATOMS = frozenset({"Symbol", "Integer", "Float", "Rational"})

_ATOM = re.compile(r"[\w.+-]+")

_FUNCTIONS = frozenset(
    {
        *("Add", "Mul", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "Equality", "Unequality"),
        *("Max", "Min", "Mod", "Abs", "And", "Or", "Not", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Piecewise", "Pow"),
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
        *("LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDense"),
        *("TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "floor", "ceiling"),
        *("sqrt", "OpaqueUnaryFn_sqrt", "True", "False", "oo", "int_oo"),
    }
)

_EXPRESSION = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Load),
    *(ast.Name, ast.Call, ast.Constant, ast.Tuple, ast.keyword),
)

_CONTAINERS = frozenset(
    {
        *("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.namedtuple"),
        *("torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict"),
        "torch.Size",
    }
)


class Untrusted(UsageError):
    """A file could run code or open files by name, and the user did not allow that (exit code 2)."""

    def __init__(self, path: Path, why: str, instead: str = "") -> None:
        what = f"{path} is not safe to load: {why}"
        super().__init__(what, f"{instead}if you trust its author, give {TRUST_OPTION}")


class _RefusedError(Exception):
    """What was found; no EdgeqError, so that the library's own `except` clauses treat it as any other."""


def load_program(path: Path, *, trusted: bool = False) -> Any:
    """Return the torch.export.ExportedProgram in `path`.

    Args:
        path: what torch.export.save wrote.
        trusted: whether code in it may run.

    Raises:
        Untrusted: it could run code.
        Exception: torch's own, of many types, for a damaged file.
    """
    import torch

    if trusted:
        with _without_tracebacks():
            return torch.export.load(path)
    found: list[str] = []
    try:
        with _restricted(found), _without_tracebacks():
            program = torch.export.load(path)
    except Exception:
        if not found:
            raise
    if found:  # torch catches what is raised in it, and tries another way
        raise Untrusted(path, found[0])
    return program


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Silence torch.export, which logs a traceback before it reads the format of torch 2.6."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _restricted(found: list[str]) -> Iterator[None]:
    """Let torch.export.load run nothing in the block; the first reason for a refusal is added to `found`."""
    import torch
    from torch._export.serde import serialize
    from torch.export.pt2_archive import _package

    load, deserialize = torch.load, serialize.ExportedProgramDeserializer.deserialize

    def refuse(why: str) -> NoReturn:
        found.append(why)
        raise _RefusedError(why)

    def load_tensors(source: Any, *args: Any, **options: Any) -> Any:
        try:
            return load(source, *args, **{**options, "weights_only": True})
        except pickle.UnpicklingError:
            refuse("it holds pickled objects other than tensors")

    class Unpickler:
        """Stands for the module `pickle`."""

        @staticmethod
        def loads(*_args: Any, **_options: Any) -> NoReturn:
            refuse("it holds pickled objects")

    def load_object(*_args: Any) -> NoReturn:
        refuse("it holds objects of custom classes")

    def checked(self: Any, program: Any, *args: Any, **options: Any) -> Any:
        why = next(_dangers(program), None)
        if why is not None:
            refuse(why)
        # they say how the inputs' sizes are related; edgeq takes fixed sizes only, and feeds no others
        program.guards_code = []
        return deserialize(self, program, *args, **options)

    with (
        replaced(torch, "load", load_tensors),
        replaced(_package, "pickle", Unpickler),
        replaced(torch._C, "_pickle_load_obj", load_object),
        replaced(serialize.ExportedProgramDeserializer, "deserialize", checked),
    ):
        yield


def _dangers(value: Any, field: str = "") -> Iterator[str]:
    """Yield what could run code in an exported program, or a part of one, of torch's schema.

    Args:
        value: a dataclass of torch._export.serde.schema, or what one holds.
        field: where it stands in that.
    """
    if isinstance(value, str):
        why = _danger(value, field)
        if why:
            yield why
    elif dataclasses.is_dataclass(value):
        # a union has one of its fields, named by its type
        tag = getattr(value, "_type", None)
        names = (str(tag),) if tag else tuple(item.name for item in dataclasses.fields(value))
        for name in names:
            # where a node comes from, and constants, which torch.fx quotes
            if name not in ("metadata", "as_string", "as_strings"):
                yield from _dangers(getattr(value, name), name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if field in _VALUES and not _is_name(key):
                yield f"it has a value named {key[:80]!r}"
            elif field == "range_constraints" and not _is_expression(key):
                yield f"it has a size named {key[:80]!r}"
            yield from _dangers(inner, field)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _dangers(inner, field)


def _danger(text: str, field: str) -> str:
    if field in _NAMES and not _is_name(text):
        return f"it has a node or an argument named {text[:80]!r}"
    if field in _QUALIFIED and not _SAFE_QUALIFIED.fullmatch(text):
        return f"it has a module or a tensor named {text[:80]!r}"
    if field in ("target", "as_operator") and not _is_operator(text):
        return f"it calls {text[:80]!r}, which is not an operator that edgeq knows to be harmless"
    if field == "expr_str" and not _is_expression(text):
        return f"it has the size {text[:80]!r}, which is more than arithmetic"
    if field in ("in_spec", "out_spec") and not _is_structure(text):
        return "the structure of its inputs or outputs names classes"
    return ""


def _is_name(text: str) -> bool:
    return text == "" or text.isidentifier()


def _is_operator(target: str) -> bool:
    if _BUILT_IN.fullmatch(target):
        return True
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return False
    space, name, overload = match[1], match[2], match[3]
    if space == "higher_order":
        return name in _CONTROL_FLOW and overload is None
    # an operator without its overload would be an attribute of the namespace, such as torch.ops.x.load_library
    return overload is not None and (space, name) not in _FILE_OPERATORS


def _is_expression(text: str) -> bool:
    """Whether a symbolic size is arithmetic on symbols and numbers: sympy evaluates it as Python."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    quoted = [arg for node in nodes if _calls(node, _ATOMS) for arg in node.args]  # type: ignore[attr-defined]
    return all(
        isinstance(node, _EXPRESSION)
        and (not isinstance(node, ast.Name) or node.id in _FUNCTIONS | _ATOMS or _SYMBOL.fullmatch(node.id) is not None)
        and (not isinstance(node, ast.Call) or isinstance(node.func, ast.Name))
        and (
            not isinstance(node, ast.Constant)
            or isinstance(node.value, int | float)
            or (isinstance(node.value, str) and node in quoted and _ATOM.fullmatch(node.value) is not None)
        )
        for node in nodes
    )


def _calls(node: ast.AST, names: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _is_structure(text: str) -> bool:
    """Whether a structure of inputs is made of plain containers: the JSON of others imports modules by name."""
    if not text:
        return True
    try:
        return _is_plain(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if not isinstance(value, dict):
        return True
    if "__enum__" in value or value.get("type") not in (None, *_CONTAINERS):
        return False
    context = value.get("context")
    if isinstance(context, str) and "__enum__" in context:  # JSON within JSON
        return False
    return all(map(_is_plain, value.values()))


# --- Checkpoints: tensors and plain containers are read, objects of classes are not made.


# functions that pickles of harmless objects call; what comes of them is only ever looked at
_HARMLESS = frozenset(
    {
        *("argparse.Namespace", "types.SimpleNamespace", "_codecs.encode", "copyreg._reconstructor"),
        *("copy_reg._reconstructor", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta"),
        *("datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "collections.deque"),
        *("numpy.dtype", "numpy.ndarray", "omegaconf.base.ContainerMetadata", "typing.Any"),
        *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
        *(f"pathlib.{pure}{kind}" for pure in ("", "Pure") for kind in ("Path", "PosixPath", "WindowsPath")),
        *(f"pathlib._local.{pure}{kind}" for pure in ("", "Pure") for kind in ("Path", "PosixPath", "WindowsPath")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "slice")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("complex", "bytearray", "object")),
    }
)


_UNKNOWN_GLOBAL = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")


class Inert:
    """Stands for an object of a class that is not loaded. It holds what the pickle says of it, and can do nothing.

    Attributes:
        origin: the class, or the function that would have been called.
        state: of the object; missing where the pickle has none.
    """

    origin = ""
    state: Any

    def __init__(self, *_args: Any) -> None:
        # torch's reader makes an instance without this call, and calls what a pickle asks it to call
        if self.origin not in _HARMLESS:
            raise _RefusedError(f"it would call {self.origin}")

    def __new__(cls, *_args: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_checkpoint(path: Path, *, trusted: bool = False) -> Any:
    """Return what torch.save wrote, on the CPU: containers and tensors, and an `Inert` for each other object.

    Args:
        path: a file of torch.save's, or a TorchScript archive, whose state dict is returned.
        trusted: whether code in it may run; objects are then those of their classes, a module its state dict.

    Raises:
        Untrusted: it calls a function that is not known to be harmless, or is an archive that opens files by name.
        UsageError: it holds a whole module, whose class would have to be imported.
        Exception: torch's own, of many types, for a damaged file.
    """
    import torch

    if is_torchscript(path):
        if not trusted:
            check_torchscript(path)
        return torch.jit.load(path, map_location="cpu").state_dict()
    if trusted:
        found = torch.load(path, map_location="cpu", weights_only=False)
        parts = found if isinstance(found, dict) else {"": found}
        states = {key: part.state_dict() if isinstance(part, torch.nn.Module) else part for key, part in parts.items()}
        return states if isinstance(found, dict) else states[""]
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, pickle.UnpicklingError):
        names = []  # of the format before torch 1.6, which names them one by one as it is read
    while True:
        try:
            with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except (_RefusedError, pickle.UnpicklingError) as err:
            unknown = _UNKNOWN_GLOBAL.search(str(err))
            if unknown is not None and unknown[1] not in names:
                names = [*names, unknown[1]]
                continue
            if any(name.startswith("torch.nn.modules.") for name in names):
                own = [name for name in names if not name.startswith("torch.")]
                raise whole_module(path, (), own[0] if own else "torch.nn.Module") from err
            if isinstance(err, _RefusedError):
                instead = "save model.state_dict() with torch.save, or use .safetensors; "
                raise Untrusted(path, str(err), instead) from err
            raise


def whole_module(path: Path, keys: Sequence[str], kind: str) -> UsageError:
    """Return the error for a file that holds a module instead of its weights, with the lines that turn it into them.

    Args:
        path: the file.
        keys: of the dicts that lead to the module.
        kind: the module's class.
    """
    target = path.with_name(f"{path.stem}_weights.pt").name
    place = "".join(f"[{key!r}]" for key in keys)
    what = f"{path} is not a plain state dict: it holds a whole pickled module ({kind}), and loading that runs its code"
    lines = (
        f"module = torch.load({path.name!r}, weights_only=False){place}",
        f"torch.save(module.state_dict(), {target!r})",
    )
    return UsageError(what, f"where {kind} can be imported, run `{lines[0]}` and `{lines[1]}`; give --weights {target}")


_TORCH_GLOBALS = ("collections", "torch._utils", "torch", "torch.storage", "torch.serialization", "builtins")


def pickled_module(path: Path) -> str:
    """Return the class of the module that torch.save pickled into a file as a whole; "" for weights, or any other file.

    The pickle's names are listed, and nothing of it is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            words: list[str] = []
            names: list[str] = []
            for code, argument, _ in pickletools.genops(archive.read(name)):
                if code.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.append(".".join(words[-2:]))
                elif isinstance(argument, str):
                    words.append(argument)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile, RuntimeError):
        return ""
    if not any(one.startswith("torch.nn.modules.") for one in names):
        return ""
    own = [one for one in names if one.rpartition(".")[0] not in _TORCH_GLOBALS]
    return own[0]


def _stand_in(name: str) -> Any:
    if name in ("collections.defaultdict", "builtins.dict"):
        return lambda *_args: {}  # torch's reader fills dicts only
    return type("Inert", (Inert,), {"origin": name})


def is_torchscript(path: Path) -> bool:
    """Whether a file is what torch.jit.save wrote; it is not loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def check_torchscript(path: Path) -> None:
    """Refuse a TorchScript archive that opens files by name; it is not loaded, since loading runs `__setstate__`.

    Raises:
        Untrusted: its code or its bytecode mentions such an operator.
    """
    import torch

    try:
        archive = torch._C.PyTorchFileReader(str(path))  # torch's own, lest another reader find other entries
        names = [name for name in archive.get_all_records() if name.endswith((".py", ".pkl"))]
        parts = [(name, archive.get_record(name)) for name in names]
    except RuntimeError:
        # a FlatBuffer of the lite interpreter's, which has no entries; or nothing that torch reads, as it will say
        parts = [("it", path.read_bytes())]
    for name, content in parts:
        if name.endswith(".py"):
            found = _file_word(content)
        else:
            text = content.decode("latin-1")
            match = _FILE_CALLS.search(text) or _CLASSES.search(text)
            found = match[0] if match else ""
        if found:
            raise Untrusted(path, f"it reads or writes files by name ({found} in {name})")


def _file_word(source: bytes) -> str:
    """Return what in TorchScript source may open a file by its name; "" for nothing.

    The names themselves are looked for, wherever they stand. One can be hidden only in the text that getattr takes, by
    escapes or in pieces; TorchScript is written in a part of Python's grammar, so that Python says what the text is.
    """
    text = source.decode(errors="replace")
    match = _FILE_WORDS.search(text) or _CLASSES.search(text)
    if match or "getattr" not in text:
        return match[0] if match else ""
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "getattr"
    taken = [call.args[1] for call in calls if _calls(call, frozenset({"getattr"})) and len(call.args) == 2]
    named = [one.value for one in taken if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    hidden = next((name for name in named if name in _FILE_NAMES), "")
    # an occurrence that is no such call is not understood
    return hidden if hidden else "" if len(named) == len(re.findall(r"\bgetattr\b", text)) else "getattr"


def check_external_data(proto: Any, path: Path) -> None:
    """Refuse an ONNX file whose tensors lie outside of its folder, or behind a link that leads out of it.

    Args:
        proto: its ModelProto, without those tensors.
        path: the file.

    Raises:
        UsageError: one does, or its file is missing.
    """
    for tensor in external_tensors(proto):
        location = external_file(tensor)
        place = (path.parent / location).resolve()
        if not place.is_relative_to(path.parent.resolve()):
            what = f"{path}: the tensor {tensor.name!r} is stored in {location!r}, outside of the model's folder"
            raise UsageError(what, "write the model again with its data in the same folder")
        if not location or not place.is_file():
            what = f"{path}: its external data {location!r} is missing (tensor {tensor.name!r})"
            raise UsageError(what, f"put {location} next to the model, or export it again as one file")


def external_tensors(message: Any) -> Iterator[Any]:
    """Yield every TensorProto below a protobuf message whose values lie in another file.

    Initializers, sparse ones, attributes of nodes, subgraphs and functions: wherever the format, of today or later, has
    a tensor.
    """
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from external_tensors(inner)


def external_file(tensor: Any) -> str:
    """Return the file that the values of an external tensor lie in, as the model names it."""
    return next((str(item.value) for item in tensor.external_data if item.key == "location"), "")
