"""The GPU's part of `verify_bundle`: whether the box is one that the artifact runs on, and the serving check."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import TYPE_CHECKING, Literal

from edgeq.artifacts import DeviceMeasures, Gate, GoldenSet
from edgeq.errors import ExitCode, UnsupportedError
from edgeq.manifest import CudaBox, Manifest
from edgeq.pipeline.golden import golden_batches, golden_dataset
from edgeq.pipeline.promises import golden_gate

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.verify.host import Gpu, HostRuntime

ON = "cuda"


def check_box(manifest: Manifest, on: str) -> None:
    """Find out before anything is run whether `--on cuda` can be done.

    Raises:
        UnsupportedError: the bundle is for no GPU.
        EnvironmentProblem: there is no CUDA device.
    """
    if on != ON:
        return
    from edgeq.verify.serving import require_cuda

    if manifest.cuda is None:
        what = f"target {manifest.target.name} runs on {manifest.target.runtime}, not on CUDA"
        raise UnsupportedError(what, "leave --on cuda out")
    require_cuda()


def box_gates(manifest: Manifest, runtime: HostRuntime) -> tuple[Gate, ...]:
    """Hold this box to what the manifest asks for (exit code 3); nothing for other runtimes."""
    if manifest.cuda is None:
        return ()
    version = importlib.metadata.version("torch").partition("+")[0]
    return (box_gate(manifest.cuda, version, runtime.gpu()),)


def box_gate(box: CudaBox, torch: str, gpu: Gpu | None) -> Gate:
    """Hold a box to what an artifact asks for (exit code 3). Without a GPU only torch is asked for: the CPU emulates.

    Args:
        box: what the manifest says.
        torch: the version on the box.
        gpu: what torch sees there.
    """
    why = _misfit(box, torch, gpu)
    on = f"{gpu.name}, compute capability {gpu.capability}, CUDA {gpu.cuda}" if gpu else "no GPU"
    compiled = f", compiled for compute capability {box.compiled_for} and CUDA {box.cuda}" if box.compiled_for else ""
    least = f", compute capability {box.least_capability} or newer" if box.least_capability else ""
    return Gate(
        name="box",
        outcome="failed" if why else "ok",
        limit=f"torch {box.torch} or newer{least}{compiled}",
        measured=f"torch {torch}, {on}",
        detail=why,
        exit_code=ExitCode.UNSUPPORTED,
    )


def _misfit(box: CudaBox, torch: str, gpu: Gpu | None) -> str:
    """Return why an artifact does not run on a box; "" where it does."""
    if _version(torch) < _version(box.torch):
        return "an older torch may not load it: update the box, or package with its torch"
    if gpu is None:
        return ""
    if box.least_capability and _version(gpu.capability) < _version(box.least_capability):
        return "the card is older than the arithmetic of this scheme: package with --scheme storage-fp16 or fp32"
    if box.compiled_for is None:
        return ""
    if gpu.capability != box.compiled_for:
        return "the package was compiled for another card: package again on one like this, or on a host without a GPU"
    if gpu.cuda != box.cuda or _version(torch) != _version(box.torch):
        return "the package was compiled with another torch or CUDA: package again with those of the box"
    return ""


def _version(text: str) -> tuple[int, int]:
    major, minor = [*text.split("."), "0"][:2]
    return int(major), int(minor)


def served(
    bundle: Bundle, golden: GoldenSet, *, timeout_s: float, device: Literal["cuda", "cpu"] = "cuda"
) -> tuple[Gate, DeviceMeasures]:
    """Run the golden samples in a process that has torch and no edgeq.

    Args:
        bundle: as it lies on disk.
        golden: its recorded inputs and outputs.
        timeout_s: for all of it.
        device: where the artifact runs.

    Returns:
        What holds its outputs to the recorded ones (exit code 7), and its times.

    Raises:
        EdgeqError: as `verify.serving.serve`.
    """
    from edgeq.verify.golden import golden_set
    from edgeq.verify.rows import of_sample
    from edgeq.verify.serving import serve

    manifest = bundle.manifest
    compiled = manifest.compiled()
    artifact = bundle.folder / compiled.path if compiled and device == "cuda" else bundle.artifact
    widen = manifest.scheme == "storage-fp16" and device == "cpu"
    samples = golden_batches(manifest, golden_dataset(bundle, golden))
    inputs = [batch.inputs for batch in samples]
    result = serve(artifact, inputs, device=device, widen=widen, threads=manifest.threads, timeout_s=timeout_s)
    pairs = zip(samples, result.outputs, strict=True)
    taken = [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in pairs]
    gate, _ = golden_gate(golden, golden_set(taken, (), scheme=manifest.scheme))
    return dataclasses.replace(gate, name=f"serving on {device}"), result.measures
