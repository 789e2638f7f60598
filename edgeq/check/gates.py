"""The table of all gates: what each judges, its exit code, which commands judge it, and whether it may stay unmeasured.

A gate's function lies in the module of this room that its subject names; a new gate is a row here and a function there.
Messages, `--allow-unmeasured`, docs/gates.md and the verdict of a finished bundle read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from edgeq.check.artifact import CONTINUATION, EQUIVALENCE, SIZES, WEIGHTS_GATE
from edgeq.check.device import DEVICE_GATE
from edgeq.check.drift import STATE
from edgeq.check.fidelity import FIDELITY
from edgeq.check.limits import INSTRUCTIONS_GATE
from edgeq.check.stores import store_limits
from edgeq.core.errors import ExitCode
from edgeq.core.schemes import LIMITS
from edgeq.core.targets import Audit

PREPROCESSING = "preprocessing"

Command = Literal["package", "verify", "ota release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateKind:
    """What is known of a gate before anything is measured.

    Attributes:
        exit_code: of a failure; what could not be measured exits with 7 for every gate.
        commands: those that judge it.
        may_stay_unmeasured: whether `--allow-unmeasured` takes its name.
        doc: what it requires of the artifact.
    """

    exit_code: ExitCode
    commands: tuple[Command, ...]
    may_stay_unmeasured: bool
    doc: str


def _kind(exit_code: ExitCode, commands: tuple[Command, ...], doc: str, *, may_stay_unmeasured: bool) -> GateKind:
    return GateKind(exit_code=exit_code, commands=commands, may_stay_unmeasured=may_stay_unmeasured, doc=doc)


_PACKAGE: tuple[Command, ...] = ("package",)
_VERIFY: tuple[Command, ...] = ("verify",)
_VERIFICATION, _ACCURACY = ExitCode.VERIFICATION, ExitCode.ACCURACY


def _limit_commands(name: str) -> tuple[Command, ...]:
    """Return the commands that judge a limit: churn needs a shipped model, and so a release; some need fp32."""
    if name in ("drift", "perplexity"):
        return _PACKAGE
    return ("ota release",) if name in ("delta", "flips") else ("package", "verify", "ota release")


GATES: MappingProxyType[str, GateKind] = MappingProxyType(
    {
        "parity": _kind(
            _VERIFICATION, _PACKAGE, "the artifact against the converted graph: one step", may_stay_unmeasured=True
        ),
        EQUIVALENCE: _kind(
            _VERIFICATION, _PACKAGE, "a float ONNX file against PyTorch's outputs", may_stay_unmeasured=True
        ),
        "outputs": _kind(
            _VERIFICATION,
            ("package", "verify"),
            "outputs are finite, vary with the input, repeat, and leave their inputs alone",
            may_stay_unmeasured=True,
        ),
        SIZES: _kind(
            _VERIFICATION,
            ("package", "verify"),
            "the artifact at the smallest, middle and largest of the sizes that vary",
            may_stay_unmeasured=True,
        ),
        STATE: _kind(
            _ACCURACY,
            _PACKAGE,
            "the artifact of a model with state, fed with its own state over 1,000 steps, stays with fp32",
            may_stay_unmeasured=True,
        ),
        CONTINUATION: _kind(
            _VERIFICATION,
            _PACKAGE,
            "the artifact of a language model, fed from its own cache, says the next tokens that its graph says",
            may_stay_unmeasured=True,
        ),
        "graph": _kind(
            _VERIFICATION, _PACKAGE, "the converted graph, where no artifact runs here", may_stay_unmeasured=False
        ),
        WEIGHTS_GATE: _kind(
            _VERIFICATION,
            _PACKAGE,
            "compressed weights, read back from the artifact, are the graph's",
            may_stay_unmeasured=False,
        ),
        FIDELITY: _kind(
            _ACCURACY,
            _PACKAGE,
            "the artifact against fp32, by output and channel: not lost, and better than chance",
            may_stay_unmeasured=True,
        ),
        PREPROCESSING: _kind(
            _VERIFICATION, _PACKAGE, "samples went through the preprocessing of the manifest", may_stay_unmeasured=True
        ),
        DEVICE_GATE: _kind(
            _VERIFICATION,
            ("package", "verify"),
            "the device's own kernels, emulated or real, give this host's outputs",
            may_stay_unmeasured=True,
        ),
        "training": _kind(_ACCURACY, _PACKAGE, "the training of qat-int8 converged", may_stay_unmeasured=False),
        "search": _kind(
            _ACCURACY, _PACKAGE, "the search of mixed-int8 found layers that keep the limits", may_stay_unmeasured=False
        ),
        **{
            name: _kind(_VERIFICATION, _PACKAGE, field.description or "", may_stay_unmeasured=True)
            for name, field in Audit.model_fields.items()
        },
        "runtime": _kind(
            ExitCode.UNSUPPORTED,
            ("package", "ota release"),
            "the oldest runtime in the field loads the artifact",
            may_stay_unmeasured=True,
        ),
        INSTRUCTIONS_GATE: _kind(
            ExitCode.LATENCY,
            ("package", "verify"),
            "executed instructions against the shipped model's (--shipped)",
            may_stay_unmeasured=True,
        ),
        **{
            name: _kind(kind.exit_code, _limit_commands(name), f"--limit {name}", may_stay_unmeasured=True)
            for name, kind in LIMITS.items()
        },
        "files": _kind(
            ExitCode.INTEGRITY, _VERIFY, "files are those that the manifest lists", may_stay_unmeasured=False
        ),
        "packaged": _kind(
            _VERIFICATION, _VERIFY, "all gates passed when the bundle was packaged", may_stay_unmeasured=False
        ),
        "box": _kind(
            ExitCode.UNSUPPORTED, _VERIFY, "this box has what a CUDA artifact needs", may_stay_unmeasured=False
        ),
        "run": _kind(_VERIFICATION, _VERIFY, "the artifact loads and runs", may_stay_unmeasured=False),
        "signature": _kind(
            _VERIFICATION, _VERIFY, "inputs and outputs are those of the manifest", may_stay_unmeasured=False
        ),
        "golden": _kind(
            _VERIFICATION, _VERIFY, "outputs for the golden samples are the recorded ones", may_stay_unmeasured=False
        ),
        "score": _kind(_ACCURACY, _VERIFY, "the score on --eval-data is the recorded one", may_stay_unmeasured=True),
        "contract": _kind(
            ExitCode.UNSUPPORTED,
            ("ota release",),
            "inputs, outputs, preprocessing and labels are the shipped model's",
            may_stay_unmeasured=False,
        ),
    }
)


def allowed_unmeasured(command: Command) -> tuple[str, ...]:
    """Return the gates that `--allow-unmeasured` of a command takes.

    `verify` takes those of `package` too: a bundle's own verdicts may have stayed unmeasured.
    """
    commands = {command, "package"} if command == "verify" else {command}
    return tuple(
        name for name, kind in GATES.items() if kind.may_stay_unmeasured and commands.intersection(kind.commands)
    )


def exit_code_of(name: str) -> ExitCode:
    """Return the exit code of a failed gate by its name, a store's preset included.

    A gate that this edgeq does not know, of a newer one's manifest, is the verification's (7).
    """
    if name in GATES:
        return GATES[name].exit_code
    return ExitCode.SIZE if name in store_limits() else ExitCode.VERIFICATION
