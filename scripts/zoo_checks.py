"""What `scripts/zoo` holds edgeq against: artifacts run by their runtimes alone, and each runtime's documented recipe.

Nothing here uses edgeq, so that an error of edgeq's own measurements shows.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report its use to its makers

Sample = dict[str, torch.Tensor]  # with the batch axis
Run = Callable[[Sample], list[NDArray[Any]]]

MEANS_DB = 30.0  # how far below the whole output an error is that counts for nothing, however little the samples change


def tensors(outputs: Any) -> list[NDArray[Any]]:
    """Return the tensors of what a model returned, in order, as arrays."""
    return [one.detach().cpu().numpy() for one in tree_leaves(outputs) if isinstance(one, torch.Tensor)]


# --- Runtimes


def _executorch(path: Path) -> Run:
    from executorch.kernels import quantized  # noqa: F401  # registers the operators of quantized tensors
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return lambda sample: [one.numpy().copy() for one in method.execute(list(sample.values()))]


def _torchscript(path: Path, engine: str) -> Run:
    from torch.jit.mobile import _load_for_lite_interpreter

    torch.backends.quantized.engine = engine
    module = (_load_for_lite_interpreter if path.suffix == ".ptl" else torch.jit.load)(str(path))

    def run(sample: Sample) -> list[NDArray[Any]]:
        with torch.no_grad():
            return tensors(module(*sample.values()))

    return run


def _onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(sample: Sample) -> list[NDArray[Any]]:
        arrays = [one.numpy() for one in sample.values()]
        by_name = dict(zip(sample, arrays, strict=True))
        # an input that the graph does not use may be gone from it
        feed = (
            {name: by_name[name] for name in names}
            if set(names) <= set(by_name)
            else dict(zip(names, arrays, strict=False))
        )
        return session.run(None, feed)

    return run


def _openvino(path: Path) -> Run:
    import openvino

    # as docs/targets.md asks of apps: on processors with bfloat16 OpenVINO 2026.4 else ends with SIGFPE in GPT-2
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(sample: Sample) -> list[NDArray[Any]]:
        found = compiled([one.numpy() for one in sample.values()])
        return [np.array(found[one]) for one in compiled.outputs]

    return run


def loaded(path: Path, engine: str) -> Run:
    """Load an artifact into its runtime; the engine is of TorchScript's quantized operators."""
    if path.suffix == ".pte":
        return _executorch(path)
    if path.suffix in (".pt", ".ptl"):
        return _torchscript(path, engine)
    return _openvino(path) if path.suffix == ".xml" else _onnx(path)


# --- Figures


def sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the SQNR of one output [samples, …] about its mean over the samples.

    Of whole numbers and truth values it counts those that differ. Where the samples hardly change the output, an error
    that is MEANS_DB below the whole output does not count.
    """
    if expected.shape != found.shape:
        return -np.inf
    if expected.dtype.kind in "biu":
        return float(10 * np.log10(expected.size / max((expected != found).sum(), 1e-3)))
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))  # infinities of masks are equal or not
    error = np.where(same, 0, expected - found)
    if not np.isfinite(error).all():
        return -np.inf
    expected = np.where(np.isfinite(expected), expected, 0)
    noise = max((error**2).sum(), 1e-30)
    spread, whole = ((expected - expected.mean(0)) ** 2).sum(), (expected**2).sum()
    return float(10 * np.log10(max(spread / noise, whole / noise / 10 ** (MEANS_DB / 10), 1e-30)))


def compared(run: Run, samples: Sequence[Sample], expected: Sequence[Sequence[NDArray[Any]]]) -> dict[str, Any]:
    """Return the SQNR of the worst output over fresh samples, and the median time of a call.

    Raises:
        ValueError: the artifact has another number of outputs.
    """
    found, times = [], []
    for sample in samples:
        start = time.perf_counter()
        found.append(run(sample))
        times.append(time.perf_counter() - start)
    if len(found[0]) != len(expected[0]):
        raise ValueError(f"{len(found[0])} outputs, the model has {len(expected[0])}")
    stacked = [
        (np.stack([row[index] for row in expected]), np.stack([np.asarray(row[index]) for row in found]))
        for index in range(len(expected[0]))
    ]
    worst = min(
        sqnr_db(right, came.reshape(right.shape) if came.size == right.size else came) for right, came in stacked
    )
    return {"db": round(max(worst, -99.0), 1), "ms": round(statistics.median(times) * 1000, 3)}


# --- Recipes


class Flat(nn.Module):
    """A model with inputs by position, which returns a tuple of its tensors."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        outputs = self.net(*inputs) if len(inputs) == 1 else self.net(**named)
        return tuple(one for one in tree_leaves(outputs) if isinstance(one, torch.Tensor))


def _pt2e(net: nn.Module, samples: Sequence[Sample], dynamic: bool, path: Path) -> Path:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = tuple(samples[0].values())
    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(Flat(net, tuple(samples[0])), example).module(), quantizer)
    for sample in samples:
        prepared(*sample.values())
    exported = torch.export.export(convert_pt2e(prepared), example)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path = path.with_suffix(".pte")
    path.write_bytes(edge.to_executorch().buffer)
    return path


def _torch(net: nn.Module, samples: Sequence[Sample], dynamic: bool, path: Path, engine: str) -> Path:
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = engine
    example = tuple(samples[0].values())
    if dynamic:
        net = quantize_dynamic(net, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8)
    else:
        prepared = prepare_fx(net, get_default_qconfig_mapping(engine), example)
        for sample in samples:
            prepared(*sample.values()) if len(sample) == 1 else prepared(**sample)
        net = convert_fx(prepared)
    traced = torch.jit.trace(Flat(net, tuple(samples[0])), example, check_trace=False, strict=False)
    if engine == "qnnpack":
        path = path.with_suffix(".ptl")
        traced._save_for_lite_interpreter(str(path))
    else:
        path = path.with_suffix(".pt")
        traced.save(str(path))
    return path


def _ort(net: nn.Module, samples: Sequence[Sample], dynamic: bool, path: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = list(samples[0])
    plain, prepared = path.with_suffix(".fp32.onnx"), path.with_suffix(".prepared.onnx")
    example = tuple(samples[0].values())
    torch.onnx.export(
        Flat(net, names), example, plain, input_names=names, dynamo=True, external_data=False, verbose=False
    )
    files = str(plain.absolute()), str(prepared.absolute())
    with contextlib.chdir(path.parent):  # where it fails to infer a shape, it leaves a file in the current folder
        quant_pre_process(*files)
    path = path.with_suffix(".onnx")
    if dynamic:
        quantize_dynamic(str(prepared), str(path))
        return path

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            sample = next(self.left, None)
            return None if sample is None else {name: one.numpy() for name, one in sample.items()}

    # weights of seven bits, as its documentation asks for on x86 processors without VNNI: the target is all of them
    quantize_static(
        str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True
    )
    return path


def _nncf(net: nn.Module, samples: Sequence[Sample], dynamic: bool, path: Path) -> Path:
    import nncf
    import openvino

    arrays = [tuple(one.numpy() for one in sample.values()) for sample in samples]
    model = openvino.convert_model(Flat(net, tuple(samples[0])), example_input=tuple(samples[0].values()))
    model.reshape({one: list(array.shape) for one, array in zip(model.inputs, arrays[0], strict=True)})
    data = nncf.Dataset([one[0] if len(one) == 1 else one for one in arrays])
    kind: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if dynamic else {}
    # weights of seven bits in all layers, for processors without VNNI; its default is the first layer only
    fix = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    path = path.with_suffix(".xml")
    made = nncf.quantize(model, data, subset_size=len(arrays), advanced_parameters=fix, **kind)
    openvino.save_model(made, str(path), compress_to_fp16=False)
    return path


def recipe(target: str, net: nn.Module, samples: Sequence[Sample], dynamic: bool, path: Path) -> Path:
    """Make an artifact as the documentation of a target's runtime shows it, and return its file.

    Args:
        target: one of TARGETS of zoo_table.
        net: the model; it is copied.
        samples: for calibration.
        dynamic: dynamic int8, on OpenVINO NNCF's form of static int8 for transformers; else static int8.
        path: of the artifact, without its suffix.
    """
    net, backend = copy.deepcopy(net), target.rpartition("-")[2]
    if backend == "xnnpack":
        return _pt2e(net, samples, dynamic, path)
    if backend == "ort":
        return _ort(net, samples, dynamic, path)
    if backend == "openvino":
        return _nncf(net, samples, dynamic, path)
    return _torch(net, samples, dynamic, path, backend)
