"""`run_example.py` in bundles for ARM64 boards, OpenVINO and LiteRT: runs the artifact alone and checks its outputs."""

from __future__ import annotations

from edgeq.core.preprocess import arithmetic_source
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.targets import TargetProfile

EXAMPLE_NAME = "run_example.py"

# what pip installs, by runtime
_PACKAGES = {
    "executorch": "executorch torch",
    "torchscript": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
}

# the code that defines `run`, by runtime
_LOADING = {
    "executorch": """\
import torch
from executorch.runtime import Runtime

torch.set_num_threads({threads})
program = Runtime.get().load_program(here / "{artifact}")
method = program.load_method("forward")


def run(arrays):
    return [output.numpy() for output in method.execute([torch.from_numpy(array) for array in arrays])]
""",
    "torchscript": """\
import torch
from torch.jit.mobile import _load_for_lite_interpreter

torch.set_num_threads({threads})
torch.backends.quantized.engine = "qnnpack"
module = _load_for_lite_interpreter(str(here / "{artifact}"))


@torch.inference_mode()
def run(arrays):
    leaves = torch.utils._pytree.tree_leaves(module(*(torch.from_numpy(array) for array in arrays)))
    return [leaf.numpy() for leaf in leaves]
""",
    "onnx": """\
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
session = onnxruntime.InferenceSession(str(here / "{artifact}"), options, providers=["CPUExecutionProvider"])
names = [item.name for item in session.get_inputs()]


def run(arrays):
    return session.run(None, dict(zip(names, arrays)))
""",
    "openvino": """\
sys.modules["openvino_telemetry"] = None  # with it, the import is reported to OpenVINO's makers
import openvino

# without the hint, processors that have bfloat16 compute float layers in it; edgeq verified float32
settings = {{"INFERENCE_NUM_THREADS": {threads}, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}}
core = openvino.Core()
request = core.compile_model(core.read_model(here / "{artifact}"), "CPU", settings).create_infer_request()


def run(arrays):
    request.infer(dict(enumerate(arrays)))
    return [tensor.data.copy() for tensor in request.output_tensors]
""",
    "litert": """\
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(str(here / "{artifact}"), num_threads={threads})
interpreter.allocate_tensors()
takes, gives = interpreter.get_input_details(), interpreter.get_output_details()


def run(arrays):
    for item, array in zip(takes, arrays):
        interpreter.set_tensor(item["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(item["index"]) for item in gives]
""",
}

_SCRIPT = '''\
"""Runs {artifact} on the golden samples, without edgeq, and compares the outputs with the recorded ones.

    pip install {requirements} numpy
    python run_example.py

Prints the difference of each sample and the median time; the exit status is 1 where outputs differ.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
import sys
import time
import types

import numpy as np

here = pathlib.Path(__file__).resolve().parent
manifest = json.loads((here / "manifest.json").read_text())
golden = np.load(here / "golden.npz")

{loading}

# --- preprocessing, as the manifest describes it


{arithmetic}

def model_input(array, tensor):
    image = tensor["preprocessing"]
    if image is not None and not manifest["golden"]["preprocessed"] and array.dtype == np.uint8:
        values = {{key: tuple(value) if isinstance(value, list) else value for key, value in image.items()}}
        array = apply(types.SimpleNamespace(**{{"dtype": "float32", **values}}), array)
    shape = tensor["shape"]
    if list(array.shape) != shape:  # a row: the model takes a batch
        array = np.repeat(array[None], shape[0], axis=0)
    return np.ascontiguousarray(array)


def sqnr_db(expected, output):
    if output.shape != expected.shape:
        output = output[0]
    expected, output = np.float64(expected), np.float64(output)
    noise = float(((output - expected) ** 2).sum())
    if not math.isfinite(noise):
        return -math.inf
    return math.inf if noise == 0 else 10 * math.log10(max(float((expected**2).sum()), 1e-30) / noise)


floor_db, failed, times_ms = manifest["golden"]["sqnr_floor_db"], False, []
for sample in range(manifest["golden"]["samples"]):
    inputs = [model_input(golden["input_" + tensor["name"]][sample], tensor) for tensor in manifest["inputs"]]
{feeding}    for _ in range(20):
        start = time.perf_counter()
        outputs = run(inputs)
        times_ms.append((time.perf_counter() - start) * 1e3)
    found = [sqnr_db(golden[f"output_{{i}}"][sample], output) for i, output in enumerate(outputs)]
    same = all(value >= floor_db for value in found)  # NaN is not
    failed |= not same
    words = ", ".join("equal" if value == math.inf else f"{{value:.1f}} dB" for value in found)
    print(f"golden sample {{sample}}: {{words}}{{'' if same else f', expected at least {{floor_db:.1f}} dB'}}")
print(f"median of {{len(times_ms)}} runs: {{statistics.median(times_ms):.3f}} ms, {threads} threads")
sys.exit(1 if failed else 0)
'''


# of a model with state: the samples are steps of one sequence
_FEEDING = """\
    if sample:  # an input that is a state takes what the step before has left, outputs[i]
        states = [(i, tensor["fed_from"]) for i, tensor in enumerate(manifest["inputs"]) if "fed_from" in tensor]
        for i, source in states:
            inputs[i] = np.array(outputs[source])  # a copy: some runtimes use the same memory for each call
"""


def has_example(target: TargetProfile) -> bool:
    """Whether bundles of the target hold the script: boards have Python, phones have not.

    OpenVINO's too, since its settings decide in which precision float layers are computed, and LiteRT's, whose wheel
    runs the same file on any host.
    """
    is_board = (target.platform, target.arch) == ("linux", "arm64") or target.runtime in ("openvino", "litert")
    # the wheel's runtime has no Ethos-U
    return is_board and target.runtime in _LOADING and target.backend not in ETHOS_U


def example_script(target: TargetProfile, artifact: str, *, has_state: bool = False) -> str:
    """Return the script for a target of `has_example`.

    Args:
        target: names the runtime, the oldest version in the field and the threads.
        artifact: the file's name.
        has_state: whether inputs are fed from outputs of the step before.
    """
    major_minor = ".".join(target.app.oldest.split(".")[:2])
    package, _, more = _PACKAGES[target.runtime].partition(" ")
    threads = target.device.threads
    return _SCRIPT.format(
        artifact=artifact,
        requirements=f"{package}~={major_minor} {more}".strip(),
        loading=_LOADING[target.runtime].format(artifact=artifact, threads=threads),
        arithmetic=arithmetic_source(),
        threads=threads,
        feeding=_FEEDING if has_state else "",
    )
