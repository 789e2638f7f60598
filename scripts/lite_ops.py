"""Write the list of operators that torch 2.1.0 registers, for edgeq/check/torch-2.1.0.ops.txt.

    pip download --no-deps --only-binary=:all: --platform manylinux2014_aarch64 --python-version 3.11 torch==2.1.0
    .venv/bin/python scripts/lite_ops.py torch-2.1.0-*.whl > edgeq/check/torch-2.1.0.ops.txt

torch 2.1.0 is what the last org.pytorch:pytorch_android_lite was built from. Two sources inside the wheel: aten's own
operators by `native_functions.yaml` (in the library their schemas have no namespace, and the linker merges those that
end alike), and the rest by the strings of libtorch_cpu.so, where their schemas stand with a namespace.
"""

from __future__ import annotations

import re
import sys
import zipfile

HEADER = """\
# Operators (with overload names) that torch 2.1.0 registers and that its lite interpreter can have.
# Made by scripts/lite_ops.py from the wheel {wheel}.
# The Android library itself was not read: built from the same sources, it can have these, and no others of torch's.
"""
LIBRARY = "torch/lib/libtorch_cpu.so"
YAML = "torchgen/packaged/ATen/native/native_functions.yaml"
# left out: what torch's build files keep out of the lite interpreter (full JIT, static runtime, oneDNN, tests)
NAMESPACES = ("aten", "prim", "quantized", "_quantized", "prepacked", "sparse")
FULL_JIT = re.compile(r"prim::(MKLDNN|mkldnn|BailOut|Bailout|Guard|TensorExpr|AddStatValue|TimePoint|IgnoredPython)")
TEXT = re.compile(rb"[\x20-\x7e\n]{8,}")
SCHEMA = re.compile(rb'(?:^|(?<=[\s"]))([a-z_]\w*::[A-Za-z_]\w*(?:\.\w+)?)\(')


def declared(yaml: str) -> set[str]:
    """aten's operators, and the out variants that the build generates."""
    names = set(re.findall(r"^- func: ([\w.]+)\(", yaml, re.MULTILINE))
    for line in re.findall(r"^  autogen: (.*)$", yaml, re.MULTILINE):
        names |= {name.strip() for name in line.split(",")}
    return {f"aten::{name}" for name in names}


def registered(library: bytes) -> set[str]:
    """Operators whose schema stands in the library with its namespace."""
    texts = (text for text in TEXT.findall(library) if b"->" in text and b"::" in text)
    names = {name.decode() for text in texts for name in SCHEMA.findall(text)}
    return {name for name in names if name.split("::")[0] in NAMESPACES and not FULL_JIT.match(name)}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: .venv/bin/python scripts/lite_ops.py TORCH_2.1.0_WHEEL")
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        names = declared(wheel.read(YAML).decode()) | registered(wheel.read(LIBRARY))
    sys.stdout.write(HEADER.format(wheel=sys.argv[1].rsplit("/", 1)[-1]))
    sys.stdout.write("".join(f"{name}\n" for name in sorted(names)))


if __name__ == "__main__":
    main()
