"""What quantization-aware training came to: a gate that it did not diverge, and a word where it did not help."""

from __future__ import annotations

from edgeq.artifacts import Gate, Tuning
from edgeq.errors import ExitCode


def training_gates(tuning: Tuning | None) -> tuple[Gate, ...]:
    """Fail a training whose loss became NaN or infinite (exit code 5); there is no gate where nothing was trained."""
    if tuning is None:
        return ()
    diverged = tuning.diverged_in
    kept = f"epoch {tuning.epochs}" if tuning.epochs else "before the training"
    detail = "" if diverged is None else f"the weights are those of {kept}; lower --qat-lr"
    return (
        Gate(
            name="training",
            outcome="ok" if diverged is None else "failed",
            limit="finite loss",
            measured="finite" if diverged is None else f"NaN or infinite in epoch {diverged}",
            detail=detail,
            exit_code=ExitCode.ACCURACY,
        ),
    )


def training_warnings(tuning: Tuning | None) -> tuple[str, ...]:
    """Say where no epoch was better than the static ranges on the samples that were held out."""
    if tuning is None or tuning.weights != "start" or tuning.diverged_in is not None:
        return ()
    return (
        "training did not bring the outputs nearer to fp32's on held-out samples: "
        "the weights are those of static-int8; try another --qat-lr or more --qat-data",
    )
