"""The table of methods: every function that it names exists, and reading the table loads no torch."""

import inspect
import subprocess
import sys

import pytest

from edgeq.core.errors import UnsupportedError
from edgeq.core.schemes import SCHEMES
from edgeq.quantize import FILE_METHODS, METHODS, RANKINGS, find_file_method, find_method, load_function

FUNCTIONS = sorted(
    {method.function for method in (*METHODS.values(), *FILE_METHODS.values()) if method.function}
    | {*RANKINGS.values()}
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_tables_exists(name):
    assert inspect.isfunction(load_function(name))


def test_every_scheme_of_the_tables_is_known_and_described():
    assert {scheme for _, scheme in METHODS} | {*FILE_METHODS} == {*SCHEMES}
    assert all(method.description.format(backend="x86") for method in (*METHODS.values(), *FILE_METHODS.values()))


def test_a_scheme_without_a_method_is_refused():
    with pytest.raises(UnsupportedError, match="onnx does not support the scheme bf16"):
        find_method("onnx", "bf16")
    with pytest.raises(UnsupportedError, match=r"qat-int8 needs a PyTorch model, but net\.onnx is an ONNX file"):
        find_file_method("qat-int8", "net.onnx")


def test_reading_the_table_loads_no_torch():
    code = "import sys, edgeq.quantize; sys.exit(sorted({'torch', 'numpy', 'onnx', 'pydantic'} & {*sys.modules}) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
