"""Tables of archives, read and written without PyTorch."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import artifact

from edgeq.lower.torchscript_archive import Call, Instance, Storage, named, place, read, values, walk, write

REBUILD = named("torch._utils", "_rebuild_tensor_v2")
FLOAT = named("torch", "FloatStorage")
atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
nested = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text("ab") | st.integers(0, 300), inner)
    ),
)


@settings(max_examples=50, deadline=None)
@given(nested)
def test_what_is_written_is_read_again_by_python_too(table):
    assert read(write(table)) == table
    assert pickle.loads(write(table)) == table


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c" * 40]), max_size=600))
def test_strings_are_written_once(words):
    data = write(words)
    assert read(data) == words
    assert sum(op.name == "BINUNICODE" for op, _, _ in pickletools.genops(data)) == len(set(words))


def test_what_is_shared_stays_shared_and_objects_are_known_only_when_built():
    storage = Storage(FLOAT, "0", "cpu", 6)
    tensor = Call(REBUILD, (storage, 0, (2, 3), (3, 1)))
    instance = named("__torch__", "Model").__new__(named("__torch__", "Model"))
    instance.state = {"first": tensor, "second": tensor}
    data = write([instance, instance, tensor, Call(REBUILD, (storage, 1, (2,), (1,)))])
    one, other, same, view = read(data)
    assert one is other
    assert one.state["first"] is one.state["second"] is same
    assert same.args[0] is view.args[0]
    assert (type(one).__module__, type(one).__name__, view.args[1]) == ("__torch__", "Model", 1)
    codes = [op.name for op, _, _ in pickletools.genops(data)]
    assert codes.count("BINPERSID") == codes.count("BUILD") == 1
    # PyTorch's reader makes an object at BUILD: before it there is nothing to remember
    assert codes[codes.index("NEWOBJ") + 1] not in ("BINPUT", "LONG_BINPUT")


def test_names_and_strings_are_renamed():
    data = write([named("__torch__.mangle_7", "Model"), "mangle_7", 7], lambda text: text.replace("_7", "_0"))
    model, text, number = read(data)
    assert (model.__module__, text, number) == ("__torch__.mangle_0", "mangle_0", 7)


@pytest.mark.parametrize("value", [b"bytes", 1j, {1, 2}, 2**63])
def test_what_pytorchs_reader_does_not_know_is_not_written(value):
    with pytest.raises(TypeError, match="a table of TorchScript holds no"):
        write([value])


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_tables_of_real_archives_read_and_write_the_same(backend):
    with zipfile.ZipFile(artifact("torchscript", "static-int8", backend)[1].path) as archive:
        tables = [name for name in archive.namelist() if name.endswith(".pkl")]
        assert {name.rpartition("/")[2] for name in tables} >= {"data.pkl", "constants.pkl"}
        for name in tables:
            table = read(archive.read(name))
            assert write(read(write(table))) == write(table)
            for node in walk(table):
                if isinstance(node, Storage):
                    assert place(archive.namelist(), name, node) in archive.namelist()


class Boom:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_a_table_is_run(capsys):
    file = io.BytesIO()
    pickle.dump([Boom(), {"a": Boom()}], file)
    first, _ = read(file.getvalue())
    assert (first.function.__name__, first.args) == ("print", ("ran",))
    assert not isinstance(first, Instance)
    assert capsys.readouterr().out == ""


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), max_size=4), st.integers(0, 3), st.integers(0, 1))
def test_values_are_those_of_numpys_strides(size, offset, step):
    expected = np.arange(offset, offset + int(np.prod(size)), dtype="<f4").reshape(size)
    data = np.arange(300, dtype="<f4")
    stride = tuple(number // 4 * step for number in expected.strides)  # of 0: one element, over and over
    found = values(Call(REBUILD, (Storage(FLOAT, "0", "cpu", 300), offset, tuple(size), stride)), data.tobytes())
    assert found.shape == expected.shape
    assert np.array_equal(found, expected if step else np.full_like(expected, offset))


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (4, 1)])
def test_a_tensor_beyond_its_storage_is_no_tensor(offset, size):
    tensor = Call(REBUILD, (Storage(FLOAT, "0", "cpu", 4), offset, (size,), (1,)))
    with pytest.raises(IndexError):
        values(tensor, bytes(16))
