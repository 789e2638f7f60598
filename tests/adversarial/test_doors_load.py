"""Model files with an evil twin each: what could run code, or read outside of its folder, is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors import SafetensorError
from safetensors.torch import save_file

from edgeq.bundle.golden import _arrays
from edgeq.core.errors import EdgeqError, IntegrityError, UsageError
from edgeq.core.files import sha256_bytes
from edgeq.core.safe_load import TRUST_OPTION, Untrusted, check_torchscript, load_program
from edgeq.load.dataset import open_array_file
from edgeq.load.exported import load_exported
from edgeq.load.model import load_model
from edgeq.load.onnx import load_onnx
from edgeq.load.weights import load_weights
from edgeq.quantize.qat import load_state
from edgeq.verify.host import HostRuntime


class Net(torch.nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class _Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported program."""
    path = tmp_path_factory.mktemp("good") / "good.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.rand(1, 1, 8, 8),)), path)
    return path


def _twin(good: Path, path: Path, edit: Callable[[str, bytes], bytes | None], more: dict[str, bytes]) -> Path:
    """Copy an archive with its entries edited; those edited to None are left out."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = edit(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
        root = source.namelist()[0].partition("/")[0]
        for name, data in more.items():
            target.writestr(f"{root}/{name}", data)
    return path


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _graph(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return edit


def _samples(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    return lambda name, data: _saved(_Runs(mark)) if "sample_inputs" in name else data, {}


def _weights(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        entry = next(iter(config["config"].values()))
        entry.update(use_pickle=True, path_name="evil")
        return json.dumps(config).encode()

    return edit, {"data/weights/evil": _saved(_Runs(mark))}


def _legacy_weights(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    return lambda _name, data: data, {"data/weights/model.pt": _saved(_Runs(mark))}


def _constant(prefix: str, data: Callable[[Path], bytes]) -> Any:
    def made(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
        def edit(name: str, content: bytes) -> bytes:
            if not name.endswith("model_constants_config.json"):
                return content
            entry = {"path_name": f"{prefix}0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"evil": entry}}).encode()

        return edit, {f"data/constants/{prefix}0": data(mark)}

    return made


def _size(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    def change(program: dict[str, Any]) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        first = next(iter(values.values()))
        first["sizes"][0] = {"as_expr": {"expr_str": f"__import__('os').system('touch {mark}')", "hint": None}}

    return _graph(change), {}


def _guard(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    code = f"__import__('os').system('touch {mark}') == 0"
    return _graph(lambda program: program.update(guards_code=[code])), {}


def _target(target: str) -> Any:
    def made(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
        def change(program: dict[str, Any]) -> None:
            argument = {"name": "command", "arg": {"as_string": f"touch {mark}"}, "kind": 1}
            node = {"target": target, "inputs": [argument], "outputs": [], "metadata": {}, "name": "evil"}
            program["graph_module"]["graph"]["nodes"].insert(0, node)

        return _graph(change), {}

    return made


def _name(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    def edit(name: str, data: bytes) -> bytes:
        evil = f"x=__import__('os').system('touch {mark}')"
        return data.replace(b'"x"', json.dumps(evil).encode()) if name.endswith("models/model.json") else data

    return edit, {}


def _weight_name(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    def edit(name: str, data: bytes) -> bytes:
        evil = f'w"),__import__("os").system("touch {mark}'
        return data.replace(b'"linear.bias"', json.dumps(evil).encode()) if name.endswith(".json") else data

    return edit, {}


def _structure(mark: Path) -> tuple[Callable[[str, bytes], bytes], dict[str, bytes]]:
    (mark.parent / "evil_module_of_the_test.py").write_text(f"open({str(mark)!r}, 'w').close()")

    def change(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps([{"__enum__": True, "fqn": "evil_module_of_the_test:E", "name": "A"}])
        spec = json.loads(signature["in_spec"])
        spec[1]["children_spec"][1]["context"] = context
        signature["in_spec"] = json.dumps(spec)

    return _graph(change), {}


_TWINS = {
    "sample inputs": _samples,
    "a weight": _weights,
    "weights of older torch": _legacy_weights,
    "an opaque constant": _constant("opaque_obj_", lambda mark: pickle.dumps(_Runs(mark))),
    "a custom object": _constant("custom_obj_", lambda mark: pickle.dumps(_Runs(mark))),
    "a size": _size,
    "a guard": _guard,
    "an attribute of torch": _target("torch.os.system"),
    "a loader of libraries": _target("torch.ops.load_library"),
    "a reader of files": _target("torch.ops.aten.from_file.default"),
    "an attribute of operator": _target("_operator.attrgetter"),
    "an input's name": _name,
    "a weight's name": _weight_name,
    "the inputs' structure": _structure,
}


@pytest.mark.parametrize("kind", _TWINS)
def test_an_exported_program_runs_nothing_of_its_own(
    kind: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "code_ran"
    edit, more = _TWINS[kind](mark)
    path = _twin(good, tmp_path / "evil.pt2", edit, more)
    if kind == "a guard":  # left out, since no input of another size is fed
        load_exported(path).module()(torch.rand(1, 1, 8, 8))
    else:
        with pytest.raises(Untrusted, match=TRUST_OPTION) as caught:
            load_exported(path)
        assert str(path) in caught.value.what
        assert caught.value.exit_code == 2
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["sample inputs", "a weight", "an opaque constant", "a size", "a guard"])
def test_the_twins_do_run_code_where_they_are_trusted(kind: str, good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "code_ran"
    edit, more = _TWINS[kind](mark)
    path = _twin(good, tmp_path / "evil.pt2", edit, more)
    try:
        load_program(path, trusted=True).module()(torch.rand(1, 1, 8, 8))
    except Exception:  # what came of the pickle is no program
        assert mark.exists()
    assert mark.exists()


@pytest.mark.parametrize("name", ["digits_torch2.6.0.pt2", "digits_torch2.9.1.pt2", "digits_torch2.12.1.pt2"])
def test_programs_of_older_torch_still_load(name: str) -> None:
    fixtures = Path(__file__).parent.parent / "fixtures"
    assert load_exported(fixtures / name).graph.nodes


def test_a_program_with_control_flow_and_dynamic_sizes_loads(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor, by_name: dict[str, torch.Tensor]) -> Any:
            y = torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a + 1, (x,))
            with torch.no_grad():
                z = y @ y.T
            return z + by_name["a"], x.nonzero()

    inputs = (torch.rand(4, 4), {"a": torch.ones(1)})
    rows = torch.export.Dim("rows", min=2, max=9)
    program = torch.export.export(Branches(), inputs, dynamic_shapes=({0: rows}, {"a": None}))
    path = tmp_path / "branches.pt2"
    torch.export.save(program, path)
    result, _ = load_program(path).module()(*inputs)
    assert torch.equal(result, program.module()(*inputs)[0])


class _Reads(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8)


class _Writes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "/tmp/written_by_a_model")  # noqa: S108
        return x


@pytest.mark.parametrize("kind", [_Reads, _Writes])
@pytest.mark.parametrize("name", ["model.pt", "model.ptl", "flat.ptl"])
def test_torchscript_opens_no_files(kind: type[torch.nn.Module], name: str, tmp_path: Path) -> None:
    module, path = torch.jit.script(kind()), tmp_path / name
    if name == "model.pt":
        module.save(str(path))
    else:
        module._save_for_lite_interpreter(str(path), _use_flatbuffer=name == "flat.ptl")
    with pytest.raises(Untrusted, match="reads or writes files by name"):
        check_torchscript(path)
    if name == "model.ptl":
        with pytest.raises(Untrusted, match=TRUST_OPTION):
            load_model(str(path), weights=None, inputs=("1x4",), name=None, seed=0)
        with HostRuntime() as runtime, pytest.raises(UsageError, match=TRUST_OPTION):
            runtime.load(path, runtime="torchscript", backend="qnnpack", threads=1)


_HIDDEN = {
    "spaces": "torch . save{}",
    "a line break": "(torch.\n     save){}",
    "an alias": "t = torch\n    t.save{}",
    "the operator itself": "ops . aten . save{}",
    "an alias of its space": "o = ops.aten\n    o.save{}",
    "a function's alias": "f = torch.save\n    f{}",
    "getattr": 'getattr(torch, "save"){}',
    "an escape": 'getattr(torch, "sa\\166e"){}',
    "pieces": 'getattr(torch, "sa" "ve"){}',
}


@pytest.mark.parametrize("how", _HIDDEN)
def test_torchscript_cannot_hide_that_it_opens_files(how: str, tmp_path: Path) -> None:
    good, evil = tmp_path / "good.pt", tmp_path / "evil.pt"
    torch.jit.script(_Writes()).save(str(good))
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".py"):
                line = next(line for line in data.decode().splitlines() if "torch.save" in line).strip()
                data = data.replace(line.encode(), _HIDDEN[how].format(line.removeprefix("torch.save")).encode())
            if "debug_pkl" not in name:
                target.writestr(name, data)
    torch.jit.load(str(evil))  # it is an archive that torch takes
    with pytest.raises(Untrusted, match="reads or writes files by name"):
        check_torchscript(evil)


class _Plain(torch.nn.Module):
    """Its code has getattr, a text with an escape, and a name that only begins like one that opens files."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4)))
        self.save_memory = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) == 0:
            raise ValueError("no\n'rows'")
        return self.parts(x) if self.save_memory else x


def test_honest_torchscript_needs_no_trust(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.jit.script(_Plain()).save(str(path))
    assert b"getattr" in b"".join(_code(path))
    check_torchscript(path)


def _code(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".py")]


def test_a_cuda_bundle_runs_nothing_of_its_own(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "code_ran"
    path = _twin(good, tmp_path / "model.pt2", *_samples(mark))
    with HostRuntime() as runtime, pytest.raises(UsageError, match=TRUST_OPTION):
        runtime.load(path, runtime="cuda", backend="cuda", threads=1)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_weights_run_nothing(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "code_ran", tmp_path / f"weights{suffix}"
    path.write_bytes(_saved({"conv.weight": _Runs(mark)}))
    with pytest.raises(UsageError, match=path.name):
        load_weights(Net(), str(path))
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_run_nothing(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "code_ran", tmp_path / f"data{suffix}"
    evil = np.array([_Runs(mark)], dtype=object)
    if suffix == ".npz":
        np.savez(path, x=evil)
    else:
        np.save(path, evil)
    mark.unlink(missing_ok=True)
    with pytest.raises(UsageError, match="not loaded"):
        open_array_file(path, None)  # type: ignore[arg-type]  # refused before anything is asked for
    assert not mark.exists()


def test_what_others_put_into_the_cache_of_trained_weights_runs_nothing(tmp_path: Path) -> None:
    mark, path = tmp_path / "code_ran", tmp_path / "key.state"
    data = _saved({"key": "key", "weights": _Runs(mark)})
    path.write_bytes(sha256_bytes(data).encode() + data)
    assert load_state(path, "key") is None
    assert not mark.exists()
    assert not path.exists()


def test_golden_samples_of_a_bundle_run_nothing(tmp_path: Path) -> None:
    mark, path = tmp_path / "code_ran", tmp_path / "golden.npz"
    np.savez(path, input_x=np.array([_Runs(mark)], dtype=object))
    mark.unlink(missing_ok=True)
    with pytest.raises(IntegrityError):
        _arrays(path.read_bytes())
    assert not mark.exists()


def _external(tensor: TensorProto, location: str) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def _onnx(path: Path, location: str, where: str) -> Path:
    tensor = _external(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"), location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y"))
    nodes, held = [helper.make_node("Add", ["x", "w"], ["y"])], [tensor]
    if where == "constant":
        nodes, held = [helper.make_node("Constant", [], ["w"], value=tensor), *nodes], []
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "constant"])
@pytest.mark.parametrize("how", ["above", "absolute", "link"])
def test_external_data_lies_beside_the_model(where: str, how: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    location = {"above": "../secret", "absolute": str(secret), "link": "link"}[how]
    path = _onnx(folder / "m.onnx", location, where)
    with pytest.raises(UsageError, match=r"outside of the model's folder"):
        load_onnx(path, inputs=(), name=None)
    with HostRuntime() as runtime, pytest.raises(EdgeqError, match=r"outside of the model's folder"):
        runtime.load(path, runtime="onnx", backend="cpu", threads=1)


def test_safetensors_hold_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(Net().state_dict(), path)
    load_weights(Net(), str(path))
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 8 + data[8:])  # a header longer than the file
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_weights(Net(), str(path))
    assert isinstance(caught.value.__cause__, SafetensorError | MemoryError)
