"""ONNX files as sources: what they say of themselves, and the many ways in which they cannot be taken."""

from __future__ import annotations

import shutil

import onnx
import pytest
from onnx import helper
from small_models import artifact

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.load.model import load_model
from edgeq.load.onnx import output_specs


@pytest.fixture
def small(tmp_path):
    return shutil.copyfile(artifact("onnx", "fp32", "ort")[1].path, tmp_path / "small.onnx")


def load(path, *inputs):
    return load_model(str(path), weights=None, inputs=inputs, name=None, seed=0)


def edited(path, change):
    proto = onnx.load(str(path))
    change(proto)
    onnx.save(proto, str(path))
    return path


def open_sizes(*names):
    def change(proto):
        for value in (proto.graph.input[0], proto.graph.output[0]):
            for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
                if name:
                    dim.dim_param = name

    return change


def test_a_file_tells_its_name_its_inputs_and_its_bytes(small):
    model = load(small)
    assert (model.name, model.kind, model.weights, model.model) == ("small", "onnx", "own", small)
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [("x", "float32", (1, 3, 16, 16))]
    assert [(spec.dtype, spec.shape) for spec in output_specs(small)] == [("float32", (1, 5))]
    assert model.fp32_bytes >= 4 * (216 + 72 + 128 + 80)


def test_open_sizes_come_from_input(small):
    edited(small, open_sizes("N", None, "H", "W"))
    with pytest.raises(UsageError, match=r"has dynamic dimensions in its input 'x': \?x3x\?x\?") as caught:
        load(small)
    assert "--input x=float32:SHAPE" in caught.value.fix
    assert load(small, "2x3x16x16").inputs[0].shape == (2, 3, 16, 16)
    assert load(small, "x=1x3x16x16:-1..1").inputs[0].low == -1
    with pytest.raises(UsageError, match="does not fit"):
        load(small, "1x4x16x16")
    with pytest.raises(UsageError, match="has no input 'y'"):
        load(small, "y=1x3x16x16")


def test_an_open_batch_alone_is_one_sample(small):
    assert load(edited(small, open_sizes("N"))).inputs[0].shape == (1, 3, 16, 16)


def test_whole_numbers_need_their_range(tmp_path):
    node = helper.make_node("Cast", ["ids"], ["y"], to=onnx.TensorProto.FLOAT)
    values = [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1, 4])]
    result = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])]
    onnx.save(helper.make_model(helper.make_graph([node], "g", values, result)), str(tmp_path / "ids.onnx"))
    with pytest.raises(UsageError, match="integers as 'ids'") as caught:
        load(tmp_path / "ids.onnx")
    assert caught.value.fix == "give their range: --input ids=int64:1x4:0..HIGH"
    assert load(tmp_path / "ids.onnx", "ids=int64:1x4:0..99").inputs[0].high == 99


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x07", b"PK\x03\x04" * 50])
def test_what_is_no_onnx_is_said_to_be_none(tmp_path, data):
    (tmp_path / "no.onnx").write_bytes(data)
    with pytest.raises(UsageError, match="is not a valid ONNX file"):
        load(tmp_path / "no.onnx")


def test_a_truncated_file_is_refused(small):
    small.write_bytes(small.read_bytes()[:-200])
    with pytest.raises(UsageError, match="is not a valid ONNX file"):
        load(small)


def test_external_data_counts_and_must_be_there(small, tmp_path):
    proto = onnx.load(str(small))
    onnx.save(proto, str(tmp_path / "two.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    before = load(tmp_path / "two.onnx")
    with (tmp_path / "w.bin").open("r+b") as file:
        file.write(b"\x01")
    assert load(tmp_path / "two.onnx").source_sha256 != before.source_sha256
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UsageError, match=r"external data 'w.bin' is missing \(tensor '") as caught:
        load(tmp_path / "two.onnx")
    assert "put w.bin next to the model" in caught.value.fix


def test_external_data_outside_of_the_folder_is_refused(small, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 4096)

    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../secret"

    path = shutil.copyfile(small, tmp_path / "deep" / "m.onnx")
    proto = onnx.load(str(path))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UsageError, match=r"'../secret', outside of the model's folder"):
        load(path)


@pytest.mark.parametrize(("opset", "way"), [(99, "newer"), (5, "older")])
def test_an_opset_that_no_runtime_has_is_refused(small, opset, way):
    def change(proto):
        proto.opset_import[0].version = opset

    proto = onnx.load(str(small))
    change(proto)
    small.write_bytes(proto.SerializeToString())
    # the checker may be the first to say so
    with pytest.raises((UnsupportedError, UsageError)) as caught:
        load(small)
    assert caught.value.exit_code == 3
    assert f"has opset {opset}, {way} than edgeq supports (7 to " in caught.value.what


def test_an_operator_of_a_custom_domain_is_named_with_its_node(small):
    def change(proto):
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        proto.graph.node[-1].domain, proto.graph.node[-1].op_type, proto.graph.node[-1].name = "mine", "Magic", "last"

    with pytest.raises(UnsupportedError, match=r"which ONNX Runtime does not have: mine::Magic \(node 'last'\)"):
        load(edited(small, change))


def test_weights_cannot_be_given(small):
    with pytest.raises(UnsupportedError, match="contains its own weights"):
        load_model(str(small), weights="w.pt", inputs=(), name=None, seed=0)
