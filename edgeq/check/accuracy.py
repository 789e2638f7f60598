"""What an accuracy drop is worth: against an fp32 model that is no better than chance it is zero, whatever ships."""

from __future__ import annotations

import math

from edgeq.artifacts import Fidelity, VerifyReport
from edgeq.job import GateOptions
from edgeq.units import counted

MAX_TIED = 0.05  # share of the samples; of int8 scores a few are equal
FAR_SQNR_DB = 10.0  # the difference is a third of the signal
_Z95 = 1.645  # the normal distribution's one-sided 95% point


def why_worthless(fidelity: Fidelity) -> str:
    """Return why the drop that was measured proves nothing; "" where it does.

    Weights that a factory did not load, another preprocessing or another order of the classes than in training leave
    fp32 at chance, and a drop against that is near zero; so is one by a metric of the user's own that labels do not
    change. Scores that are no shares have no percentage points.
    """
    fp32, score, chance = fidelity.fp32_score, fidelity.score, fidelity.chance_score
    if fp32 is None or score is None:
        return ""
    if not score_is_share(fidelity):
        return (
            f"percentage points are of a score from 0 to 1, and {fidelity.metric} gave {fp32:.4g} for fp32 and"
            f" {score:.4g}: scale it"
        )
    mismatched = fidelity.mismatch_drop_pp
    if mismatched is not None and mismatched.high < 0:
        return (
            f"{fidelity.metric} scores fp32 higher against other samples' labels, or noise, than against its own, by"
            f" {-mismatched.estimate:.2f} pp: higher must be better, so return 1 - x for a loss or an error x"
        )
    if mismatched is not None and not mismatched.low > 0:
        return (
            f"{fidelity.metric} scores fp32 no better against its own labels than against other samples', or noise"
            f" ({mismatched.estimate:.2f} pp, {mismatched.low:.2f} to {mismatched.high:.2f}): does it look at the"
            " label, are the samples enough, and are weights and preprocessing right?"
        )
    if chance is None:
        return ""
    distinct = fidelity.samples if fidelity.distinct is None else fidelity.distinct
    margin = _Z95 * math.sqrt(chance * (1 - chance) / distinct)
    if fp32 > chance + margin:
        return ""
    return (
        f"fp32 itself scores {fp32:.1%} over {counted(fidelity.samples, 'sample')}, no better than the commonest"
        f" label alone ({chance:.1%}): are weights, preprocessing and the order of the classes right?"
    )


def score_is_share(fidelity: Fidelity) -> bool:
    """Whether both scores lie from 0 to 1, so that their difference has percentage points."""
    return all(score is not None and 0 <= score <= 1 for score in (fidelity.fp32_score, fidelity.score))


def accuracy_warnings(scheme: str, verified: VerifyReport, options: GateOptions) -> tuple[str, ...]:
    """Return what to know where no limit on the drop was given; with one, its gate says the same and fails."""
    fidelity = verified.fidelity
    if fidelity is None or any(name == "accuracy_drop" for name, _ in options.limits):
        return ()
    said = []
    comparable = fidelity.chance_score is not None or fidelity.mismatch_drop_pp is not None
    if comparable and (why := why_worthless(fidelity)):
        said.append(why)
    if fidelity.tied is not None and fidelity.tied > MAX_TIED:
        said.append(
            f"the first class shares its score with another one in {fidelity.tied:.1%} of the samples, where fp32 tells"
            " them apart: which of them counts depends on the order of the classes"
        )
    if fidelity.sqnr_db is not None and fidelity.sqnr_db < FAR_SQNR_DB:
        inputs = "evaluation samples" if fidelity.inputs == "evaluation" else "random inputs"
        said.append(f"the outputs are far from fp32's: {fidelity.sqnr_db:.1f} dB over {fidelity.samples} {inputs}")
    if scheme == "pretrained":
        said.append("the model came quantized: there is no fp32 model to hold its outputs to")
    elif scheme != "fp32":
        how = "" if fidelity.score is not None else "labelled --eval-data and "
        said.append(f"accuracy was not judged: add {how}--limit accuracy_drop=1pp, or what you can afford")
    return tuple(said)
