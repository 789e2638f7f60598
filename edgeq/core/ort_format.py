"""ONNX Runtime's own format, `.ort`: the operators that a file needs, by ONNX Runtime's own tool."""

from __future__ import annotations

from pathlib import Path


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
