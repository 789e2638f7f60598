"""What ExecuTorch's developer tools read of a lowered program: its ETRecord, and a BundledProgram with test cases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.lazy import NDArray, np


def write_etrecord(program: Any, path: Path) -> None:
    """Write the ETRecord of an ExecutorchProgramManager that was lowered with `generate_etrecord`.

    It has the graphs and where each instruction comes from, source lines with their paths too.

    Raises:
        UnsupportedError: ExecuTorch cannot serialize a graph of the program.
    """
    try:
        program.get_etrecord().save(str(path))
    except Exception as err:  # its serializer raises many types
        what = f"ExecuTorch cannot write the ETRecord of this model: {first_line(err)}"
        raise UnsupportedError(what, "omit --devtools") from err


def bundled_program(path: Path, cases: Iterable[tuple[tuple[NDArray[Any], ...], tuple[NDArray[Any], ...]]]) -> bytes:
    """Return a program with test cases as ExecuTorch's BundledProgram (`.bpte`), equal for equal arguments.

    Args:
        path: the `.pte`.
        cases: inputs and expected outputs of `forward`, in the program's own shapes and dtypes.
    """
    import torch
    from executorch.devtools import BundledProgram
    from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite
    from executorch.devtools.bundled_program.serialize import serialize_from_bundled_program_to_flatbuffer

    def tensors(arrays: tuple[NDArray[Any], ...]) -> list[Any]:
        return [torch.from_numpy(np.array(array)) for array in arrays]  # copied: golden arrays are read-only

    tests = [MethodTestCase(inputs=tensors(given), expected_outputs=tensors(expected)) for given, expected in cases]
    bundled = BundledProgram(
        executorch_program=None,
        method_test_suites=[MethodTestSuite("forward", tests)],
        pte_file_path=str(path),
    )
    data: bytes = serialize_from_bundled_program_to_flatbuffer(bundled)
    return data
