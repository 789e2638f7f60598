"""The host's runtimes inside the child process: each loads, runs, times and profiles an artifact."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.half import emulation
from edgeq.core.lazy import NDArray, np
from edgeq.core.ort_format import required_operators
from edgeq.core.safe_load import Untrusted, check_external_data, check_torchscript, load_program
from edgeq.core.socs import Soc, find_soc
from edgeq.core.system import openvino


class Runner:
    """An artifact in its runtime."""

    def __init__(self, path: Path, backend: str, threads: int, *, trusted: bool) -> None:
        self.path = path
        self.trusted = trusted
        self.backend = backend
        self.threads = threads
        self.mark: Mark | None = None
        self.overwritten: set[int] = set()

    def load(self) -> dict[str, Any]:
        """Load the artifact and time it; return its inputs and outputs."""
        self.mark = mark()
        start = time.perf_counter_ns()
        facts = self._open()
        return {"load_ms": (time.perf_counter_ns() - start) / 1e6, **facts}

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        """Return torch tensors of `arrays`; copied, since arrays from the pipe are read-only."""
        import torch

        return tuple(torch.from_numpy(np.array(array)) for array in arrays)

    def run(self, arrays: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
        """Run once and return every output tensor; note which inputs the artifact wrote to."""
        inputs = self.tensors(arrays)
        outputs = self.outputs(inputs)
        self._compare(inputs, arrays)
        return outputs

    def run_twice(self, arrays: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
        """Run twice on the same tensors, as an app that fills a buffer does, and return the second run's outputs."""
        inputs = self.tensors(arrays)
        self.outputs(inputs)
        outputs = self.outputs(inputs)
        self._compare(inputs, arrays)
        return outputs

    def outputs(self, inputs: tuple[Any, ...]) -> tuple[NDArray[Any], ...]:
        """Run once on tensors and return every output as an array."""
        import torch

        leaves = torch.utils._pytree.tree_leaves(self.call(inputs))
        return tuple(leaf.detach().cpu().numpy() for leaf in leaves)

    def _compare(self, inputs: tuple[Any, ...], arrays: tuple[NDArray[Any], ...]) -> None:
        for index, (tensor, array) in enumerate(zip(inputs, arrays, strict=True)):
            now = np.ascontiguousarray(tensor.cpu().numpy() if hasattr(tensor, "cpu") else tensor)
            if now.tobytes() != np.ascontiguousarray(array).tobytes():  # equal bytes, so that NaN is equal too
                self.overwritten.add(index)

    def peak_bytes(self) -> int | None:
        """Return the peak memory of loading and running; None where /proc does not have it."""
        return peak_bytes(self.mark, self.path)

    def _open(self) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, inputs: tuple[Any, ...]) -> Any:
        """Run once on tensors."""
        raise NotImplementedError

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:
        """Return the kernel names of one run, in order."""
        raise NotImplementedError

    def facts(self, folder: Path) -> dict[str, Any]:
        """Return the operators, the number of delegates and the bytecode version."""
        raise NotImplementedError


PROFILE_NAME = "profile.etdp"  # ExecuTorch's, in the folder of `Runner.profile`


class _ExecuTorch(Runner):
    def _open(self) -> dict[str, Any]:
        # the package's own front imports all of executorch.exir, which takes ten seconds
        from executorch.extension.pybindings import _C as runtime  # noqa: N811

        # refuse what is no program at all: the runtime's own error quotes its bytes, and aborts if they are no text
        with self.path.open("rb") as file:
            identifier = file.read(8)[4:]  # where FlatBuffers has it
        if not identifier.startswith(b"ET"):
            raise ValueError(f"bytes 4 to 8 are {identifier!r}, those of an ExecuTorch program b'ET12'")
        runtime._unsafe_reset_threadpool(self.threads)
        self.runtime = runtime
        # the Program must outlive its Method, or the runtime crashes
        self.program = runtime._load_program(
            str(self.path), program_verification=runtime.Verification.InternalConsistency
        )
        self.method = self.program.load_method("forward")
        meta = self.method.method_meta()
        return {
            "inputs": [_described(meta.input_tensor_meta(i)) for i in range(meta.num_inputs())],
            "outputs": [_described(meta.output_tensor_meta(i)) for i in range(meta.num_outputs())],
            "threads": runtime._threadpool_get_thread_count(),
        }

    def call(self, inputs: tuple[Any, ...]) -> Any:
        return self.method(inputs)

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:
        program = self.runtime._load_program(
            str(self.path),
            enable_etdump=True,
            debug_buffer_size=0,
            program_verification=self.runtime.Verification.InternalConsistency,
        )
        method = program.load_method("forward")
        method(self.tensors(arrays))
        dump = folder / PROFILE_NAME
        program.write_etdump_result_to_file(str(dump), str(folder / "profile.bin"))
        return [event.name for event in last_run(dump)]

    def facts(self, folder: Path) -> dict[str, Any]:
        plan = tables(self.path, folder, "schema/program.fbs")["execution_plan"][0]
        names = [f"{op['name']}.{op['overload']}".rstrip(".") for op in plan.get("operators", ())]
        return {"operators": sorted(set(names)), "delegates": len(plan.get("delegates", ())), "bytecode_version": None}


def _described(info: Any) -> list[Any]:
    """Return [dtype, shape] of a tensor's meta data; the dtype is ExecuTorch's ScalarType code."""
    codes = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
    return [{**codes, 11: "bool"}.get(info.dtype(), f"code {info.dtype()}"), list(info.sizes())]


class _TorchScript(Runner):
    def _open(self) -> dict[str, Any]:
        import torch
        from torch.jit.mobile import _load_for_lite_interpreter

        torch.set_num_threads(self.threads)
        torch.backends.quantized.engine = self.backend
        is_lite = self.path.suffix == ".ptl"
        if not self.trusted:
            check_torchscript(self.path)
        self.module = (_load_for_lite_interpreter if is_lite else torch.jit.load)(str(self.path))
        return {"threads": torch.get_num_threads()}

    def call(self, inputs: tuple[Any, ...]) -> Any:
        return self.module(*inputs)

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        import torch

        inputs = self.tensors(arrays)
        # torch.profiler.profile imports torch._inductor first, which takes a second
        with torch.autograd.profiler.profile(use_kineto=True) as profile:
            self.call(inputs)
        events = sorted(profile.function_events or (), key=lambda event: event.time_range.start)
        return [str(event.name) for event in events if not _inside_operator(event)]

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        from torch.jit.mobile import _export_operator_list, _get_model_bytecode_version

        is_lite = self.path.suffix == ".ptl"
        names = _export_operator_list(self.module) if is_lite else ()
        version = int(_get_model_bytecode_version(str(self.path))) if is_lite else None
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": version}


def _inside_operator(event: Any) -> bool:
    """Whether an event is part of an operator that the program has as one: a convolution, or a grid of positions."""
    parent = event.cpu_parent
    while parent is not None and parent.name not in _whole_operators():
        parent = parent.cpu_parent
    return parent is not None


@functools.cache
def _whole_operators() -> frozenset[str]:
    """Return the operators, without overloads, that are not composed of others below autograd, where programs list."""
    import torch

    composite = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    names, composed = (
        {name.partition(".")[0] for name in found} for found in (torch._C._dispatch_get_all_op_names(), composite)
    )
    return frozenset(names - composed)


class _Onnx(Runner):
    def _open(self) -> dict[str, Any]:
        if self.path.suffix == ".onnx":
            import onnx

            check_external_data(onnx.load(str(self.path), load_external_data=False), self.path)
        self.session = self._session()
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.names = [item.name for item in inputs]
        return {
            "inputs": [_onnx_described(item) for item in inputs],
            "outputs": [_onnx_described(item) for item in outputs],
            "names": self.names,
            "threads": self.threads,
        }

    def _session(self, profile: Path | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; its warnings concern graphs that people write by hand
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        _, _, soc = self.backend.partition("/")
        if not soc:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        return self._on_npu(options, find_soc(soc))

    def _on_npu(self, options: Any, soc: Soc) -> Any:
        """Return a session on the emulator of a SoC's NPU, which onnxruntime-qnn holds, and on nothing beside it."""
        import onnxruntime
        import onnxruntime_qnn

        def devices() -> list[Any]:
            return [one for one in onnxruntime.get_ep_devices() if one.ep_name == onnxruntime_qnn.get_ep_name()]

        if not devices():
            onnxruntime.register_execution_provider_library(
                onnxruntime_qnn.get_ep_name(), onnxruntime_qnn.get_library_path()
            )
        # else what the NPU does not take runs on the CPU without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {
            "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
            "soc_model": str(soc.model),
            "htp_arch": str(soc.htp_arch),
            "vtcm_mb": str(soc.vtcm_mb),
        }
        options.add_provider_for_devices(devices()[:1], settings)
        return onnxruntime.InferenceSession(str(self.path), options)

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        return arrays

    def outputs(self, inputs: tuple[Any, ...]) -> tuple[NDArray[Any], ...]:
        return tuple(np.asarray(output) for output in self.call(inputs))

    def call(self, inputs: tuple[Any, ...]) -> Any:
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)))

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:
        session = self._session(folder / "profile")
        session.run(None, dict(zip(self.names, arrays, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_bytes())
        return [
            f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ]

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        import onnx

        if self.path.suffix == ".ort":
            return {"operators": required_operators(self.path), "delegates": 0, "bytecode_version": None}
        model = onnx.load(str(self.path), load_external_data=False)
        names = {f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in model.graph.node}
        opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": int(opset)}


def _onnx_described(info: Any) -> list[Any]:
    """Return [dtype, shape] of an input or output; a dimension that is not fixed is 0."""
    name = info.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    return [dtype, [size if isinstance(size, int) else 0 for size in info.shape]]


class _OpenVino(Runner):
    def __init__(self, path: Path, backend: str, threads: int, *, trusted: bool) -> None:
        super().__init__(path, backend, threads, trusted=trusted)
        self.core = openvino().Core()

    def _open(self) -> dict[str, Any]:
        # the CPU plugin computes float layers in bfloat16 where the host has it, unless this is stated
        settings = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = self.core.read_model(str(self.path))
        self.compiled = self.core.compile_model(self.model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        return {
            "inputs": [_openvino_described(port) for port in self.compiled.inputs],
            "outputs": [_openvino_described(port) for port in self.compiled.outputs],
            "names": [port.get_any_name() for port in self.compiled.inputs],
            "threads": int(self.compiled.get_property("INFERENCE_NUM_THREADS")),
        }

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        return arrays

    def outputs(self, inputs: tuple[Any, ...]) -> tuple[NDArray[Any], ...]:
        return tuple(np.array(output) for output in self.call(inputs))

    def call(self, inputs: tuple[Any, ...]) -> Any:
        self.request.infer(dict(enumerate(inputs)))
        return [tensor.data for tensor in self.request.output_tensors]

    def peak_bytes(self) -> int | None:
        return peak_bytes(self.mark, self.path.with_suffix(".bin"))

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        """Return operator, kernel, precision of the input, and names in the model of what the kernel computes."""
        self.call(arrays)
        nodes = [op.get_rt_info() for op in self.compiled.get_runtime_model().get_ordered_ops()]
        ran = sorted((one for one in nodes if "execOrder" in one), key=lambda one: int(one["execOrder"].value))
        wanted = ("layerType", "primitiveType", "runtimePrecision", "originalLayersNames")
        return [" ".join(str(one[key].value) for key in wanted if key in one) for one in ran]

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        infos = (op.get_type_info() for op in self.model.get_ops())
        names = {f"{info.version_id}::{info.name}" for info in infos}
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": None}


def _openvino_described(port: Any) -> list[Any]:
    """Return [dtype, shape] of an input or output; a dimension that is not fixed is 0."""
    shape = [size.get_length() if size.is_static else 0 for size in port.get_partial_shape()]
    return [np.dtype(port.get_element_type().to_dtype()).name, shape]


class _LiteRt(Runner):
    def _open(self) -> dict[str, Any]:
        from ai_edge_litert.interpreter import Interpreter

        # with XNNPACK wherever it has kernels, as in an app
        self.interpreter = Interpreter(str(self.path), num_threads=self.threads)
        self.interpreter.allocate_tensors()
        self.takes, self.gives = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        return {
            "inputs": [_litert_described(item) for item in self.takes],
            "outputs": [_litert_described(item) for item in self.gives],
            "names": [item["name"] for item in self.takes],
            "threads": self.threads,
        }

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        return arrays

    def outputs(self, inputs: tuple[Any, ...]) -> tuple[NDArray[Any], ...]:
        return tuple(np.array(output) for output in self.call(inputs))

    def call(self, inputs: tuple[Any, ...]) -> Any:
        for item, array in zip(self.takes, inputs, strict=True):
            self.interpreter.set_tensor(item["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(item["index"]) for item in self.gives]

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        """Return the operators, with the types of what they multiply: LiteRT has a kernel for each set of types."""
        self.call(arrays)
        found = []
        for op in self.interpreter._get_ops_details():
            read = [self.interpreter._get_tensor_details(index, 0) for index in op["inputs"] if index >= 0]
            types = ", ".join(np.dtype(tensor["dtype"]).name for tensor in read)
            if op["op_name"] != "DELEGATE":  # XNNPACK's share of those before, once more
                made = self.interpreter._get_tensor_details(op["outputs"][0], 0)["name"]
                found.append(f"{op['op_name']} ({types}) {made}")
        return found

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        names = {op["op_name"] for op in self.interpreter._get_ops_details()} - {"DELEGATE"}
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": None}


def _litert_described(info: Any) -> list[Any]:
    """Return [dtype, shape] of an input or output; a dimension that is not fixed is 0."""
    return [np.dtype(info["dtype"]).name, [max(0, int(size)) for size in info["shape_signature"]]]


class _Cuda(Runner):
    """On a GPU if there is one; else half precision is emulated on the CPU."""

    def _open(self) -> dict[str, Any]:
        import torch
        import torch.export.passes

        torch.set_num_threads(self.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.program = None
        compiled = self.path.with_name("model.aoti.pt2")
        if self.path.suffix == ".pt":
            if not self.trusted:
                check_torchscript(self.path)
            self.module = torch.jit.load(str(self.path), map_location=self.device)
        else:
            program = load_program(self.path, trusted=self.trusted)
            self.program = program
            self.module = torch.export.passes.move_to_device_pass(program, self.device).module()
        if self.device == "cuda" and compiled.exists():
            if not self.trusted:
                raise Untrusted(compiled, "it is machine code")
            self.module = torch._inductor.aoti_load_package(str(compiled))
        if self.device == "cpu":
            return {"threads": torch.get_num_threads(), "stand_in": "no CUDA device here: emulated on the CPU"}
        self.weight_bytes = int(torch.cuda.memory_allocated())
        return {"threads": torch.get_num_threads(), **gpu_facts()}

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        return tuple(tensor.to(self.device) for tensor in super().tensors(arrays))

    def call(self, inputs: tuple[Any, ...]) -> Any:
        import torch

        if self.device == "cpu":
            with emulation():
                return self.module(*inputs)
        try:
            result = self.module(*inputs)
            torch.cuda.synchronize()  # or only the launches would be timed
        except torch.OutOfMemoryError as err:
            raise out_of_memory(err, inputs, self.weight_bytes) from err
        return result

    def peak_bytes(self) -> int | None:
        import torch

        return int(torch.cuda.max_memory_allocated()) if self.device == "cuda" else None

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        return []  # the precision of each operator stands in the program itself

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        nodes = self.program.graph.nodes if self.program is not None else ()
        names = {str(node.target) for node in nodes if node.op == "call_function"}
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": None}


RUNNERS: dict[str, type[Runner]] = {
    "executorch": _ExecuTorch,
    "torchscript": _TorchScript,
    "onnx": _Onnx,
    "openvino": _OpenVino,
    "litert": _LiteRt,
    "cuda": _Cuda,
}


# --- ExecuTorch's flatbuffers as plain data, by the compiler and the schemas that come with it. Imports no torch.


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One profile event; times are from the runtime's clock, in ns."""

    name: str
    in_delegate: bool
    start: int
    end: int


def tables(path: Path, folder: Path, schema: str, *options: str) -> dict[str, Any]:
    """Return a flatbuffer as JSON data; `folder` takes the compiler's output."""
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("executorch")
    root = Path(found.submodule_search_locations[0])
    command = [str(root / "data" / "bin" / "flatc"), "--json", "--strict-json", "--raw-binary", *options]
    command += ["-o", str(folder), str(root / schema), "--", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads((folder / f"{path.stem}.json").read_text())
    return content


def last_run(dump: Path) -> tuple[Event, ...]:
    """Return the events of an ETDump's last run, in the order in which they were logged."""
    content = tables(dump, dump.parent, "devtools/etdump/etdump_schema_flatcc.fbs", "--size-prefixed")
    logged = [event.get("profile_event", {}) for event in content["run_data"][-1]["events"]]
    return tuple(
        Event(
            name=str(event.get("delegate_debug_id_str") or event.get("name", "")),
            in_delegate="delegate_debug_id_str" in event,
            start=int(event.get("start_time", 0)),
            end=int(event.get("end_time", 0)),
        )
        for event in logged
    )


# --- The GPU of this host, as torch sees it, and what fits into its memory.


OUT_OF_MEMORY = "out of device memory"

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_ASKED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")


def gpu_facts() -> dict[str, str]:
    """Return name, compute capability and CUDA version of the GPU; nothing if there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "cuda": str(torch.version.cuda)}


def rows_that_fit(rows: int, *, weight_bytes: int, needed_bytes: int, memory_bytes: int) -> int:
    """Return an upper bound of the rows that fit, from the memory that a failing batch needed.

    Activations grow with the batch, weights do not. Later needs of the batch are not known, so fewer may fit.

    Args:
        rows: of the batch that failed.
        weight_bytes: memory in use before it ran.
        needed_bytes: memory in use when it failed, plus the failed allocation.
        memory_bytes: memory available to it.
    """
    activations = max(needed_bytes - weight_bytes, 1)
    return max(0, min(rows - 1, rows * (memory_bytes - weight_bytes) // activations))


def out_of_memory(err: BaseException, inputs: tuple[Any, ...], weight_bytes: int) -> RuntimeError:
    """Return the error of a batch that did not fit, with the number of rows that may fit.

    Args:
        err: torch's own, with the size of the failed allocation.
        inputs: what was run; the batch comes first.
        weight_bytes: what was taken before.
    """
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info()
    taken_bytes = int(torch.cuda.max_memory_allocated())
    rows = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
    most = rows_that_fit(
        rows,
        weight_bytes=weight_bytes,
        needed_bytes=taken_bytes + asked_bytes(str(err)),
        memory_bytes=taken_bytes + free_bytes,
    )
    return RuntimeError(
        f"{OUT_OF_MEMORY}: a batch of {rows} does not fit into {total_bytes / 2**30:.1f} GiB; at most {most} rows fit"
    )


def asked_bytes(text: str) -> int:
    """Return the size of the failed allocation in torch's message ("Tried to allocate 2.00 GiB"); 0 without one."""
    match = _ASKED.search(text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


# --- Peak memory of a model in this process, by what the kernel counts (proc(5)).


_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The state before a model is loaded, in bytes."""

    resident: int
    of_files: int


def mark() -> Mark | None:
    """Reset the high-water mark of the resident set and return the state; None where /proc does not have it."""
    try:
        (_SELF / "clear_refs").write_text("5")
        return Mark(resident=_status("VmRSS"), of_files=_status("RssFile"))
    except (OSError, KeyError):
        return None


def peak_bytes(since: Mark | None, model: Path) -> int | None:
    """Return the peak of allocated memory since `since`, with the part of the model's file that is mapped.

    Pages of libraries that are touched for the first time are left out: they depend on how the process was started, and
    an app has them for any model.
    """
    if since is None:
        return None
    try:
        libraries = _status("RssFile") - since.of_files - _mapped(model)
        return max(0, _status("VmHWM") - since.resident - max(0, libraries))
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    fields = dict(line.split(":", 1) for line in (_SELF / "status").read_text().splitlines())
    return int(fields[key].split()[0]) * 1024


def _mapped(path: Path) -> int:
    """Return how many bytes of a file are mapped and resident."""
    total = 0
    inside = False
    for line in (_SELF / "smaps").read_text().splitlines():
        first = line.split(None, 1)[0]
        if not first.endswith(":"):
            inside = line.endswith(f" {path}")
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total
