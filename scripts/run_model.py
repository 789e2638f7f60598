"""Run an artifact: MODEL INPUTS OUTPUTS, for tests of the app on a machine without a phone.

INPUTS is an .npz with `input_<i>` [samples, …] as the model takes them, each sample in a batch of its own; OUTPUTS gets
`output_<i>` [samples, …]. With `--on CPU`, such as cortex-a53, the runtime in the field runs them on that emulated CPU,
all samples in one process; without, this host's runtime does. What ran them is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.core.errors import EdgeqError
from edgeq.core.targets import TargetProfile, load_target

_TARGETS = {".pte": "android-arm64-xnnpack", ".ptl": "android-arm64-qnnpack"}

Arrays = tuple[NDArray[Any], ...]


def main(model: Path, inputs: Path, outputs: Path, on: str | None) -> str:
    """Run every sample, write the outputs, and return what ran them, in words."""
    target = load_target(_TARGETS[model.suffix])
    with np.load(inputs, allow_pickle=False) as file:
        columns = [file[f"input_{index}"] for index in range(len(file.files))]
    samples = [tuple(column[np.newaxis] for column in sample) for sample in zip(*columns, strict=True)]
    rows, what = _on_host(model, samples, target) if on is None else _emulated(model, samples, target, on)
    results = [np.concatenate(column) for column in zip(*rows, strict=True)]
    np.savez(outputs, **{f"output_{index}": array for index, array in enumerate(results)})
    return what


def _on_host(model: Path, samples: Sequence[Arrays], target: TargetProfile) -> tuple[list[Arrays], str]:
    from edgeq.core.system import host_arch
    from edgeq.verify.host import HostRuntime

    with HostRuntime() as host:
        host.load(model, runtime=target.runtime, backend=target.backend, threads=1)
        return [host.run(sample) for sample in samples], f"{target.runtime} on this {host_arch()} host"


def _emulated(model: Path, samples: Sequence[Arrays], target: TargetProfile, cpu: str) -> tuple[list[Arrays], str]:
    from edgeq.cli.console import note
    from edgeq.pipeline.devices import machines
    from edgeq.report.progress import Lines
    from edgeq.verify.emulate.runner import Work, run

    machine = machines(target.runtime, target.app.runtimes, (cpu,), Lines(note))[-1]
    ran = run(Work(runtime=machine.runtime, cpu=machine.cpu, model=model, samples=tuple(samples)))
    return list(ran.outputs), machine.name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run an artifact on every sample.")
    for argument in ("model", "inputs", "outputs"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--on", metavar="CPU", help="emulate this CPU; without, run on this host")
    given = parser.parse_args()
    try:
        print(f"ran on: {main(given.model, given.inputs, given.outputs, given.on)}")
    except EdgeqError as err:
        print(f"error: {err.what}\n  fix: {err.fix}", file=sys.stderr)
        sys.exit(err.exit_code)
