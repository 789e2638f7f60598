"""Run an artifact on this host: MODEL INPUTS OUTPUTS, for tests of the app on a machine without a phone.

INPUTS is an .npz with `input_<i>` [samples, …] as the model takes them, each sample in a batch of its own; OUTPUTS gets
`output_<i>` [samples, …]. Whatever else can run an artifact takes the same three arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgeq.verify.host import HostRuntime

_RUNTIMES = {".pte": ("executorch", "xnnpack"), ".ptl": ("torchscript", "qnnpack")}


def main(model: Path, inputs: Path, outputs: Path) -> None:
    """Run every sample, and write the outputs."""
    runtime, backend = _RUNTIMES[model.suffix]
    with np.load(inputs, allow_pickle=False) as file:
        columns = [file[f"input_{index}"] for index in range(len(file.files))]
    with HostRuntime() as host:
        host.load(model, runtime=runtime, backend=backend, threads=1)
        rows = [host.run(tuple(column[np.newaxis] for column in sample)) for sample in zip(*columns, strict=True)]
    results = [np.concatenate(column) for column in zip(*rows, strict=True)]
    np.savez(outputs, **{f"output_{index}": array for index, array in enumerate(results)})


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: run_model.py MODEL INPUTS.npz OUTPUTS.npz")
    main(*map(Path, sys.argv[1:]))
