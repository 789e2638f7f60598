"""ONNX Runtime's own format, `.ort`: the operators that a file needs, and equal bytes for equal models."""

from __future__ import annotations

import importlib
import struct
import warnings
from pathlib import Path
from typing import Any


def required_operators(path: Path) -> tuple[str, ...]:
    """Return the operators of an .ort file with the opset that each is from, such as `ai.onnx::Softmax@13`, sorted."""
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    found: dict[str, dict[int, set[str]]] = {}
    OrtFormatModelProcessor(str(path), found, None).process()
    return tuple(
        sorted(
            f"{domain}::{name}@{opset}"
            for domain, opsets in found.items()
            for opset, names in opsets.items()
            for name in names
        )
    )


def reduced_build_config(operators: tuple[str, ...]) -> str:
    """Return the file that a reduced build of ONNX Runtime takes (`--include_ops_by_config`).

    Lines of `domain;opset;operators` (docs/reference/operators/reduced-operator-config-file.md of ONNX Runtime).
    """
    lines: dict[tuple[str, int], list[str]] = {}
    for text in operators:
        domain, _, rest = text.partition("::")
        name, _, opset = rest.partition("@")
        lines.setdefault((domain, int(opset)), []).append(name)
    return "".join(f"{domain};{opset};{','.join(names)}\n" for (domain, opset), names in sorted(lines.items()))


_ALIGNMENT = 16  # of flatbuffers' largest scalars, and of what ONNX Runtime maps


def settled(data: bytes) -> bytes:
    """Return an .ort file that holds the same as `data`, with equal bytes for equal models.

    ONNX Runtime (1.31) writes its table of kernel types in the order of a hash map, whose seed is an address: the
    bytes differ from process to process. The table comes last, and a flatbuffer is built from its end, so that it lies
    in front of the model; what lies behind never points to it. It is written again, sorted by operator, in front of the
    model's own bytes.

    Warns:
        UserWarning: this version of ONNX Runtime lays a file out otherwise, and its bytes are left as they are.
    """
    fbs = _schema()
    session = fbs.InferenceSession.InferenceSession.GetRootAs(data, 0)
    model, resolver = session.Model(), session.KernelTypeStrResolver()
    model_at = model._tab.Pos
    start = min(model_at, model_at - struct.unpack_from("<i", data, model_at)[0])  # with the table of its fields
    if resolver is None or start <= resolver._tab.Pos:
        what = "ONNX Runtime has another layout of files than version 1.31, for which edgeq is written"
        warnings.warn(f"{what}: equal models may get .ort files with different bytes", stacklevel=2)
        return data
    front, field_at = _front(session, resolver)
    body = data[start:]
    front += bytes(-(len(front) + len(body)) % _ALIGNMENT)
    struct.pack_into("<I", front, field_at, len(front) + model_at - start - field_at)
    return bytes(front) + body


def _front(session: Any, resolver: Any) -> tuple[bytearray, int]:
    """Return what lies in front of the model, and where in it the distance from there to the model is to stand."""
    import flatbuffers

    fbs = _schema()
    builder = flatbuffers.Builder()
    builder.ForceDefaults(False)
    by_op = {}
    for entry in (resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())):
        by_op[entry.OpId()] = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
    entries = []
    for op, kernel_types in sorted(by_op.items()):
        types = [_kernel_type(builder, kind) for kind in sorted(kernel_types, key=lambda one: one.KernelTypeStr())]
        module = fbs.OpIdKernelTypeStrArgsEntry
        listed, name = _vector(builder, types), builder.CreateString(op)
        module.OpIdKernelTypeStrArgsEntryStart(builder)
        module.OpIdKernelTypeStrArgsEntryAddOpId(builder, name)
        module.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, listed)
        entries.append(module.OpIdKernelTypeStrArgsEntryEnd(builder))
    listed, version = _vector(builder, entries), builder.CreateString(session.OrtVersion())
    fbs.KernelTypeStrResolver.KernelTypeStrResolverStart(builder)
    fbs.KernelTypeStrResolver.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, listed)
    table = fbs.KernelTypeStrResolver.KernelTypeStrResolverEnd(builder)
    module = fbs.InferenceSession
    module.InferenceSessionStart(builder)
    module.InferenceSessionAddOrtVersion(builder, version)
    module.InferenceSessionAddModel(builder, table)  # any table: the distance is written over
    module.InferenceSessionAddKernelTypeStrResolver(builder, table)
    builder.Finish(module.InferenceSessionEnd(builder), file_identifier=b"ORTM")
    front = builder.Output()
    root = module.InferenceSession.GetRootAs(front, 0)._tab
    return front, root.Pos + root.Offset(_MODEL_FIELD)


_MODEL_FIELD = 6  # of an InferenceSession, in its table of fields: 4 + 2 bytes for each field before it


def _kernel_type(builder: Any, kind: Any) -> Any:
    fbs = _schema()
    arguments = []
    for one in (kind.Args(i) for i in range(kind.ArgsLength())):
        fbs.ArgTypeAndIndex.ArgTypeAndIndexStart(builder)
        fbs.ArgTypeAndIndex.ArgTypeAndIndexAddArgType(builder, one.ArgType())
        fbs.ArgTypeAndIndex.ArgTypeAndIndexAddIndex(builder, one.Index())
        arguments.append(fbs.ArgTypeAndIndex.ArgTypeAndIndexEnd(builder))
    module = fbs.KernelTypeStrArgsEntry
    listed, name = _vector(builder, arguments), builder.CreateString(kind.KernelTypeStr())
    module.KernelTypeStrArgsEntryStart(builder)
    module.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
    module.KernelTypeStrArgsEntryAddArgs(builder, listed)
    return module.KernelTypeStrArgsEntryEnd(builder)


def _vector(builder: Any, offsets: list[Any]) -> Any:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _schema() -> Any:
    """Return ONNX Runtime's own classes of the format."""
    importlib.import_module("onnxruntime.tools.ort_format_model")  # which makes them importable
    return importlib.import_module("ort_flatbuffers_py.fbs")
