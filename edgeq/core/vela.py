"""Arm's compiler for Ethos-U NPUs, vela: TOSA programs in, commands and weights out, with its own report.

Lowering compiles by it, through ExecuTorch; verification compiles the same TOSA program again, and compares. It imports
no torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.lazy import np

REFERENCE_NAME = "reference.zip"  # of a bundle: the TOSA programs that vela compiled, beside the artifact

# --- What vela makes of a TOSA program.


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What vela made of one TOSA program.

    Attributes:
        commands, weights: what the NPU reads.
        scratch_bytes: the memory that it needs while it runs.
        report: vela's own figures, by the names in its summary.
    """

    commands: bytes
    weights: bytes
    scratch_bytes: int
    report: Mapping[str, str]

    @property
    def cycles(self) -> int:
        """Vela's estimate of the NPU's cycles for one inference."""
        return int(float(self.report["cycles_total"]))

    def used_bytes(self, memory: str) -> int:
        """Return how much of a memory (`sram`, `dram`, `on_chip_flash`, `off_chip_flash`) is used; vela tells KiB."""
        return round(float(self.report[f"{memory}_memory_used"]) * 1024)


def compile_tosa(program: bytes, flags: Sequence[str], folder: Path) -> Compiled:
    """Compile a TOSA program by vela, as ExecuTorch does.

    Args:
        program: a TOSA flatbuffer.
        flags: vela's options, without its folder and file.
        folder: takes vela's files; it exists, and vela has written nothing there yet.

    Raises:
        UnsupportedError: vela cannot compile it, or not for this NPU.
    """
    from ethosu.vela import vela

    path = folder / "out.tosa"
    path.write_bytes(program)
    with quiet() as said:
        try:
            vela.main([*flags, f"--output-dir={folder / 'output'}", str(path)])
        except (Exception, SystemExit) as err:
            raise cannot_compile(said.getvalue(), err) from err
    return read_output(folder)


def cannot_compile(said: str, err: BaseException) -> UnsupportedError:
    """Return the error of a program that vela refuses.

    Args:
        said: what vela printed: it prints some errors, and ends the process.
        err: what it raised.
    """
    lines = [line.strip() for line in said.splitlines() if "rror" in line]
    why = first_line(err) if isinstance(err, Exception) else lines[-1] if lines else "it ended without a message"
    fix = "check the table [npu] of the target's profile, or replace the operator that this error names"
    return UnsupportedError(f"vela cannot compile it: {why}", fix)


def read_output(folder: Path) -> Compiled:
    """Return what vela wrote for the file `out.tosa` of a folder."""
    (summary,) = (folder / "output").glob("out_summary_*.csv")
    with summary.open(newline="", encoding="utf-8") as file:
        (report,) = csv.DictReader(file)
    with np.load(folder / "output" / "out_vela.npz", allow_pickle=False) as data:
        return Compiled(
            commands=data["cmd_data"].tobytes(),
            weights=data["weight_data"].tobytes(),
            scratch_bytes=int(data["scratch_shape"][0]),
            report=report,
        )


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep what vela prints in the block, its summary among it."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        yield said


# --- What ExecuTorch keeps of it in a program, for its backend on the board (backends/arm/arm_vela.py).

_BLOCK = struct.Struct("<16sIB11s")  # name, bytes, whether it lies elsewhere, reserved

_END = "vela_end_stream"


def stream_blocks(data: bytes) -> dict[str, bytes]:
    """Return the blocks of the stream that a delegate of a `.pte` holds, by their names.

    Raises:
        ValueError: it does not have ExecuTorch's format.
    """
    blocks: dict[str, bytes] = {}
    at = 0
    while _END not in blocks:
        if at + _BLOCK.size > len(data):
            raise ValueError("the NPU's part of the program ends in the middle")
        name, size, is_elsewhere, _ = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        if is_elsewhere or at + size > len(data):
            raise ValueError("the NPU's part of the program refers to what is not in it")
        blocks[name.rstrip(b"\0").decode("ascii", "replace")] = data[at : at + size]
        at += -(-size // 16) * 16
    return blocks
