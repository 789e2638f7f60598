"""Weights in int4 beside the libraries' own: `scripts/bench int4 [MODEL…]`.

The same float model goes through edgeq's weight-only-int4 and, exported in float32, through NNCF's compress_weights
(OpenVINO) and ONNX Runtime's MatMulNBitsQuantizer; and through edgeq's 8da4w and torchao's quantize_ with ExecuTorch's
plain lowering. Groups are of 128 where a row says nothing else. The files run in their runtime on the same samples; the
SQNR is of their outputs against the fp32 model. The times of ExecuTorch's files are interleaved, with one thread. NNCF
is in the environment of `scripts/zoo`; without it its rows are left out. torchao's recipe fails on
nn.MultiheadAttention: the decoder has linear layers alone.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
import torchvision
from hard_digits import Quiet
from torch import nn

from edgeq.core.results.model import LoadedModel, TensorSpec
from edgeq.core.samples import Dataset
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QuantizeSpec

SAMPLES, GROUP = 16, 128

BACKENDS = {"openvino": "openvino", "onnx": "ort", "executorch": "xnnpack"}
SCHEMES = {
    "openvino": (("weight-only-int8", GROUP), ("weight-only-int4", GROUP)),
    "onnx": (("weight-only-int4", GROUP),),
    "executorch": (("dynamic-int8", GROUP), ("8da4w", GROUP), ("8da4w", 32)),
}


class Encoder(nn.Module):
    """Four layers of attention over 32 positions of 256 channels, [1, 32, 256] to the same."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        for part in self.layers.parameters():  # else all layers are copies of one
            if part.ndim > 1:
                nn.init.xavier_uniform_(part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Block(nn.Module):
    """A layer of a small language model: attention over what came before, and a gated pair of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(256), nn.RMSNorm(256)
        self.query, self.key, self.value, self.out = (nn.Linear(256, 256, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(256, 1024, bias=False), nn.Linear(256, 1024, bias=False)
        self.down = nn.Linear(1024, 256, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.first(x)
        heads = [part(normed).unflatten(-1, (4, 64)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        normed = self.second(x)
        return x + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return each model with its samples, [SAMPLES, …]."""
    torch.manual_seed(0)
    photos = nn.functional.interpolate(torch.randn(SAMPLES, 3, 14, 14), size=96, mode="bilinear")
    mobilenet = torchvision.models.mobilenet_v2(weights=None)
    with torch.no_grad():
        mobilenet(photos)  # statistics of batch norm
    return {
        "encoder": (Encoder(), torch.randn(SAMPLES, 32, 256)),
        "mobilenet_v2": (mobilenet, photos),
        "decoder": (nn.Sequential(*(Block() for _ in range(4))), torch.randn(SAMPLES, 32, 256)),
    }


def lowered(model: LoadedModel, captured: Any, runtime: str, scheme: str, folder: Path, group: int = GROUP) -> Path:
    """Quantize and lower, and return the artifact."""
    folder.mkdir()
    backend = BACKENDS[runtime]
    data = Dataset(origin="none", count=0, read=lambda _: None, labelled=False)
    made = quantize(
        runtime,
        scheme,
        QuantizeSpec(
            model=model,
            captured=captured,
            backend=backend,
            observer="histogram",
            keep_fp32=(),
            calibration=data,
            progress=Quiet(),
            label="",
            int4_group=group,
        ),
    )
    spec = LowerSpec(inputs=model.inputs, backend=backend, folder=folder, progress=Quiet(), label="")
    return lower(runtime, made, spec).path


def by_nncf(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what NNCF makes of a float IR: with its defaults, which keep the last layer in int8, and of all layers."""
    try:
        import nncf
    except ImportError:
        return
    for name, is_all in (("NNCF, INT4_SYM", False), ("NNCF, INT4_SYM, all_layers", True)):
        model = openvino.Core().read_model(path)
        mode = nncf.CompressWeightsMode.INT4_SYM
        made = nncf.compress_weights(model, mode=mode, group_size=GROUP, all_layers=is_all)
        target = folder / f"nncf-{is_all}.xml"
        openvino.save_model(made, target, compress_to_fp16=False)
        yield name, target


def by_onnxruntime(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what ONNX Runtime's quantizer makes of a float file."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for name, is_symmetric in (("MatMulNBitsQuantizer, symmetric", True), ("MatMulNBitsQuantizer, asymmetric", False)):
        maker = MatMulNBitsQuantizer(onnx.load(path), block_size=GROUP, is_symmetric=is_symmetric, accuracy_level=1)
        maker.process()
        target = folder / f"ort-{is_symmetric}.onnx"
        target.write_bytes(maker.model.model.SerializeToString())
        yield name, target


def by_torchao(module: nn.Module, sample: torch.Tensor, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what torchao's recipe and ExecuTorch's plain lowering make of a model; nothing where the recipe fails."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    for group in (GROUP, 32):
        made = copy.deepcopy(module)
        recipe = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(group))
        quantize_(made, recipe)
        try:
            program = torch.export.export(made, (sample[None],))
        except Exception as err:  # torch.export raises many types
            print(f"torchao's recipe fails: {str(err).splitlines()[0]}")
            return
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        target = folder / f"torchao-{group}.pte"
        target.write_bytes(lowered.buffer)
        yield f"torchao's recipe, groups of {group}", target


def program_of(path: Path) -> Any:
    """Return a function from an input to the output of a .pte file."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return lambda row: method.execute([row])[0]


def times(paths: dict[str, Path], sample: torch.Tensor) -> None:
    """Print the median time of an inference of .pte files, in turns, with one thread."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)
    programs = {name: program_of(path) for name, path in paths.items()}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(200):
        for name, program in programs.items():
            before = time.perf_counter()
            program(sample[None])
            taken[name].append(time.perf_counter() - before)
    for name, found in taken.items():
        print(f"{name:36} {1000 * statistics.median(found):7.3f} ms", flush=True)


def run(path: Path, samples: torch.Tensor) -> np.ndarray:
    """Return the outputs of a file for each sample."""
    rows = [sample[None].numpy() for sample in samples]
    if path.suffix == ".pte":
        program = program_of(path)
        return np.concatenate([program(sample[None]).numpy() for sample in samples])
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: row})[0] for row in rows])
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return np.concatenate([compiled(row)[0] for row in rows])


def line(name: str, path: Path, samples: torch.Tensor, expected: np.ndarray) -> None:
    files = [path] if path.suffix != ".xml" else [path, path.with_suffix(".bin")]
    data = [file.read_bytes() for file in files]
    noise = np.square(run(path, samples) - expected).sum()
    ratio = 10 * np.log10(np.square(expected).sum() / noise)
    sizes = (sum(map(len, data)) / 1e6, sum(len(zlib.compress(one)) for one in data) / 1e6)
    print(f"{name:36} {sizes[0]:7.2f} MB {sizes[1]:7.2f} MB deflated {ratio:6.1f} dB", flush=True)


def main() -> None:
    for name, (module, samples) in models().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        module.eval()
        spec = TensorSpec(name="x", dtype="float32", shape=(1, *samples.shape[1:]))
        model = LoadedModel(
            name=name,
            kind="module",
            model=module,
            inputs=(spec,),
            weights="own",
            fp32_bytes=0,
            source_sha256="0" * 64,
        )
        captured = capture(model)
        with torch.no_grad():
            expected = np.concatenate([module(sample[None]).numpy() for sample in samples])
        for runtime in BACKENDS:
            print(f"{name}, {runtime}")
            with tempfile.TemporaryDirectory() as root:
                folder = Path(root)
                plain = lowered(model, captured, runtime, "fp32", folder / "fp32")
                found = {"fp32": plain}
                for scheme, group in SCHEMES[runtime]:
                    if scheme == "8da4w" and name == "mobilenet_v2":  # a linear layer alone: refused by its audit
                        continue
                    title = f"edgeq, {scheme}" + (f", groups of {group}" if group != GROUP else "")
                    found[title] = lowered(model, captured, runtime, scheme, folder / f"{scheme}-{group}", group)
                if runtime == "executorch":
                    found.update(by_torchao(module, samples[0], folder))
                else:
                    found.update((by_nncf if runtime == "openvino" else by_onnxruntime)(plain, folder))
                for title, path in found.items():
                    line(title, path, samples, expected)
                if runtime == "executorch":
                    times(found, samples[0])


if __name__ == "__main__":
    main()
