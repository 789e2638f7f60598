"""The floor for every artifact, with or without limits: it must still behave like the source model.

The floor is far below any model that ships, so no good model fails it; the project's own limits decide what is good.
`--limit sqnr=0` turns the floor off. A limit on the accuracy drop replaces the floor's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeq.check.gate import decibels, unverified
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.intervals import Z95, least_provable_drop, samples_for_drop, share
from edgeq.core.results.measured import ClassDrop, Fidelity, GroupFidelity, OutputAgreement, VerifyReport
from edgeq.core.results.report import Gate
from edgeq.core.schemes import FLOAT_SCHEMES, LOST_DB
from edgeq.core.units import counted


def score_is_share(fidelity: Fidelity) -> bool:
    """Whether both scores lie from 0 to 1, so that their difference has percentage points."""
    return all(score is not None and 0 <= score <= 1 for score in (fidelity.fp32_score, fidelity.score))


FIDELITY = "fidelity"

CLASS_DROP = "class_drop"

# the error is as large as the signal; `LOST_DB` is where zeros in the signal's place are told from it
MIN_SQNR_DB = 0.0

# of fewer samples the mean is too uncertain to be taken away from them
LEAST_SAMPLES = 8

# an error this far below the spread of the values is the noise of a few quantization steps, and loses no channel,
# however little the samples at hand change it: rounding to 8 bits leaves 20 log10 255 = 48 dB where values fill their
# range evenly
FAINT_DB = 30.0

# the same of values from 0 to 1, as root mean square: of a whole output a step and a quarter of 1/255, and of one
# channel, such as the probability of a class that no sample has, five
FAINT_SHARE, FAINT_SHARE_OF_CHANNEL = 0.005, 0.02

# but an error that large in one value is an event that the artifact misses, such as the one object among 8,400 anchors
MISSED_SHARE = 0.25

# a channel of many is judged alone only as one of a group that large
LEAST_OF_MANY = 0.1

# Cohen's kappa, agreement beyond chance: up to 0.4 is fair at best (Landis and Koch, Biometrics 33, 1977)
MAX_POOR_KAPPA = 0.4

# A ranking is kept, although its scores hardly change, if this share of the samples has fp32's class, and this kappa:
# the same one of ten landmarks in pixels is the largest in nearly every sample, whatever is left of their moves.
SAME_CLASS = 0.9
SAME_CLASS_KAPPA = 0.5

MAX_DROP_PP = 20.0

MAX_CLASS_DROP_PP = 20.0

LEAST_OF_CLASS = 3

COLLAPSED = 0.5  # share of fp32's right answers that is left of a class


def floor_gates(scheme: str, verified: VerifyReport, options: GateOptions) -> tuple[Gate, ...]:
    """Return the gates `fidelity` and `class_drop` (exit code 5); none without fp32 outputs to compare with.

    Args:
        scheme: the artifact's; an integer layer may round channels of unlike ranges with one scale.
        verified: results of the artifact's run.
        options: the limits.
    """
    only = verified.graph_only
    fidelity = only.fidelity if only else verified.fidelity
    # what is not finite is a finding of the outputs, and compares with nothing
    if fidelity is None or fidelity.sqnr_db is None or math.isnan(fidelity.sqnr_db):
        return ()
    limits = dict(options.limits)
    if limits.get("sqnr") == 0:
        return ()
    judges_drop = "accuracy_drop" not in limits
    wrong = [*_lost_parts(fidelity), *_poor_agreements(fidelity)]
    drop = fidelity.drop_pp
    if judges_drop and drop and drop.estimate >= MAX_DROP_PP and drop.low > 0 and score_is_share(fidelity):
        wrong.append(f"{fidelity.metric} falls by {drop.estimate:.1f} pp ({drop.low:.1f} to {drop.high:.1f})")
    wrong += [
        f"at {run.text}: SQNR {decibels(run.sqnr_db)}{_nothing_left(run.sqnr_db)}"
        for run in (verified.sizes.runs if verified.sizes else ())
        if run.sqnr_db is not None and -math.inf < run.sqnr_db < LOST_DB
    ]
    name, value = worst_part(fidelity)
    limit = f">= {MIN_SQNR_DB:.0f} dB in every channel, and better than chance"
    fix = "; --limit sqnr=0 turns this check off" if wrong else ""
    unlike = tuple(f"{group.name}: " for group in fidelity.groups if group.unlike)
    if scheme not in FLOAT_SCHEMES and any(part.startswith(unlike) for part in wrong):
        fix = f"; keep the layer that computes it in float (--keep-fp32; `edgeq sensitivity` lists the layers){fix}"
    unproven = [] if wrong else _lost_parts(fidelity, of_one_class=True)
    if unproven:
        why = f"fp32 gives all samples one class: {'; '.join(unproven)}; give labels, or samples of several classes"
        gates = [unverified(FIDELITY, limit, f"{why}; --limit sqnr=0 turns this check off")]
    else:
        gates = [
            Gate(
                name=FIDELITY,
                outcome="failed" if wrong else "ok",
                limit=limit,
                measured=f"{name}: {decibels(value)}",
                detail=f"{'; '.join(wrong)}{fix}",
                exit_code=ExitCode.ACCURACY,
            )
        ]
    if fidelity.classes:
        gates.append(class_drop_gate(fidelity))
    return tuple(gates)


def worst_part(fidelity: Fidelity) -> tuple[str, float]:
    """Return the output, or the channels of it, with the lowest SQNR against fp32: its description and the SQNR in dB.

    Where the samples suffice to tell the common part of all outputs, that mean does not count as signal.
    """
    whole = -math.inf if fidelity.sqnr_db is None or math.isnan(fidelity.sqnr_db) else fidelity.sqnr_db
    changes = [
        (group.change_sqnr_db, group.name)
        for group in fidelity.groups
        if group.change_sqnr_db is not None
        and proves_changes(fidelity)
        and not _is_faint(group)
        and not _keeps_ranking(group, fidelity)
    ]
    if changes and min(changes)[0] <= whole:
        return min(changes)[1], min(changes)[0]
    return _worst_output(fidelity), whole


def _worst_output(fidelity: Fidelity) -> str:
    if fidelity.worst_output is not None:
        return f"output {fidelity.worst_output}"
    wholes = [(group.sqnr_db, group.name) for group in fidelity.groups if group.count == group.of]
    return min(wholes)[1] if wholes else "the outputs"


def proves_changes(fidelity: Fidelity) -> bool:
    """Whether the samples suffice, in number and kind, to separate what varies from what all of them share."""
    distinct = fidelity.samples if fidelity.distinct is None else fidelity.distinct
    return fidelity.inputs == "evaluation" and distinct >= LEAST_SAMPLES


def _lost_parts(fidelity: Fidelity, *, of_one_class: bool = False) -> list[str]:
    """Name outputs that are more error than signal, and channels of which nothing is left.

    Args:
        fidelity: the artifact's.
        of_one_class: name those of which samples of one class cannot tell whether they are scores that hardly change.
    """
    lost = []
    whole = fidelity.sqnr_db
    if whole is not None and -math.inf < whole < LOST_DB:
        lost.append(f"{_worst_output(fidelity)}: SQNR {decibels(whole)}{_nothing_left(whole)}")
    if not proves_changes(fidelity):
        return lost
    for group in sorted(fidelity.groups, key=lambda one: one.count == one.of):
        value = group.change_sqnr_db
        if value is None or not (value < LOST_DB or group.constant) or _is_faint(group):
            continue
        if _keeps_ranking(group, fidelity) is not (None if of_one_class else False):
            continue
        about = f"SQNR {decibels(value)} about its mean{_nothing_left(value)}"
        what = "constant, unlike fp32's" if group.constant else about
        lost.append(f"{group.name}: {what}")
    return list(dict.fromkeys(lost))[:4]


def _nothing_left(value: float) -> str:
    return ", next to nothing of it is left" if value >= MIN_SQNR_DB else ""


def _is_faint(group: GroupFidelity) -> bool:
    """Whether a group's error is too small to matter, however little the samples change the group."""
    alone = group.count < group.of
    few = group.count < LEAST_OF_MANY * group.of if group.count > 1 else group.of > 4 / LEAST_OF_MANY
    if alone and few and not group.of_items:
        return True
    is_slight = group.error_rms <= (FAINT_SHARE_OF_CHANNEL if alone else FAINT_SHARE)
    if group.shares and is_slight and group.error_max <= MISSED_SHARE:
        return True
    return not group.shares and group.spread_sqnr_db >= FAINT_DB


def _keeps_ranking(group: GroupFidelity, fidelity: Fidelity) -> bool | None:
    """Whether a group is of scores whose first class stays fp32's, however little they change.

    None where it does and no label says that these are classes, and all samples have the same: so has the largest of
    ten landmarks in pixels.
    """
    if group.unlike or (group.count < group.of and group.constant):
        return False
    kept = [
        one for one in fidelity.agreements if one.output == group.output and one.agreeing >= SAME_CLASS * one.ranked
    ]
    # with labels, the recall of each class is judged
    if any(
        fidelity.by_labels or (one.chance < 1 and _kappa(one.agreeing / one.ranked, one.chance) >= SAME_CLASS_KAPPA)
        for one in kept
    ):
        return True
    return None if any(one.chance >= 1 for one in kept) else False


def _poor_agreements(fidelity: Fidelity) -> list[str]:
    """Name outputs whose first class is, beyond chance, another one than fp32's."""
    if fidelity.inputs != "evaluation":
        return []
    ranked = [(one, "samples have fp32's top-1 class") for one in fidelity.agreements]
    indexed = [(one, "classes are fp32's") for one in fidelity.indices]
    return [
        f"output {one.output}: {one.agreeing} of {one.ranked} {what}; chance alone gives {one.chance:.1%}"
        for one, what in (*ranked, *indexed)
        if most_kappa(one) < MAX_POOR_KAPPA
    ]


def most_kappa(one: OutputAgreement, z: float = Z95) -> float:
    """Return the upper end of an interval of Cohen's kappa; 1 where chance alone would agree everywhere."""
    _, high = share(one.agreeing / one.ranked * one.distinct, one.distinct, z)
    return _kappa(high, one.chance)


def _kappa(agreement: float, chance: float) -> float:
    return 1.0 if chance >= 1 else (agreement - chance) / (1 - chance)


# --- A converted graph that is looked at on some of the samples before it is lowered: the verdict must be certain.


_Z_CERTAIN = 4.0  # standard deviations: one in 30,000 lies further up


def looks_lost(seen: VerifyReport, best_db: Sequence[float], options: GateOptions) -> bool:
    """Whether a reason of `certain_loss` holds on a few samples: where none does, none will on more of them.

    Args:
        seen: results of the graph on these samples, `graph_only`.
        best_db: by output, the highest SQNR of any of these samples.
        options: the limits.
    """
    only = seen.graph_only
    if only is None or dict(options.limits).get("sqnr") == 0:
        return False
    fidelity = only.fidelity
    if any(highest < MIN_SQNR_DB for highest in best_db):
        return True
    return fidelity.inputs == "evaluation" and (
        any(group.constant for group in fidelity.groups)
        or any(2 * one.agreeing <= one.ranked for one in fidelity.agreements)
    )


def certain_loss(scheme: str, seen: VerifyReport, best_db: Sequence[float], options: GateOptions) -> str:
    """Return why no samples beyond some spread ones can let an artifact pass the floor; "" where they may.

    The floor must fail on these samples, and an output must be constant on all of them, be more error than signal on
    each of them, or have fp32's class no more often than chance, within 4 standard deviations. The samples must be many
    enough that what holds for all of them holds for nearly all others.

    Args:
        scheme: the graph's.
        seen: results of the graph on these samples, `graph_only`.
        best_db: by output, the highest SQNR of any of these samples.
        options: the limits.
    """
    only = seen.graph_only
    failed = [gate for gate in floor_gates(scheme, seen, options) if gate.outcome == "failed" and gate.name == FIDELITY]
    if only is None or not failed:
        return ""
    fidelity = only.fidelity
    for output, highest in enumerate(best_db):
        groups = [group for group in fidelity.groups if group.output == output]
        if proves_changes(fidelity) and groups and all(group.constant for group in groups):
            return f"output {output} is constant, unlike fp32's"
        if highest < MIN_SQNR_DB:
            return f"output {output} is more error than signal on each of them"
    for one in fidelity.agreements if fidelity.inputs == "evaluation" else ():
        if most_kappa(one, _Z_CERTAIN) < MAX_POOR_KAPPA:
            found = f"{one.agreeing} of {one.ranked} samples have fp32's class"
            return f"output {one.output}: {found}; chance alone gives {one.chance:.1%}"
    return ""


def class_drop_gate(fidelity: Fidelity) -> Gate:
    """Fail if a class collapses: the artifact keeps at most half of the samples that fp32 gets right.

    The gate fails where the drop is provably more than `MAX_CLASS_DROP_PP`. It is unverified for a labelled class that
    collapsed, or lost all of at least `LEAST_OF_CLASS` samples, but has too few samples to prove how much.
    """
    limit = f"<= {MAX_CLASS_DROP_PP:.0f} pp, where the samples prove it"
    collapsed = [
        one
        for one in fidelity.classes
        if one.right <= COLLAPSED * one.fp32_right
        and (one.drop_pp.low > 0 or (one.right == 0 and min(one.fp32_right, one.distinct) >= LEAST_OF_CLASS))
    ]
    proven = [one for one in collapsed if one.drop_pp.low > MAX_CLASS_DROP_PP]
    if collapsed and not proven and fidelity.by_labels:
        return unverified(CLASS_DROP, limit, f"{class_words(collapsed[0], fidelity)}; too few samples to tell how much")
    worst = proven[0] if proven else fidelity.classes[0]
    return Gate(
        name=CLASS_DROP,
        outcome="failed" if proven else "ok",
        limit=limit,
        measured=f"{worst.drop_pp.estimate:.2f} pp",
        detail=f"{class_words(worst, fidelity)}{'; --limit sqnr=0 turns this check off' if proven else ''}",
        exit_code=ExitCode.ACCURACY,
    )


def class_words(one: ClassDrop, fidelity: Fidelity) -> str:
    """Return a text with one class's drop and its number of samples."""
    repeats = f", {one.distinct} distinct" if one.distinct < one.samples else ""
    of = f"{counted(one.samples, 'sample')}{repeats}{'' if fidelity.by_labels else ' that fp32 assigns to it'}"
    drop = f"drop {one.drop_pp.estimate:.1f} pp ({one.drop_pp.low:.1f} to {one.drop_pp.high:.1f})"
    return f"class {one.label}: {one.right} right of {of}, fp32 {one.fp32_right}, {drop}"


def unproven_drop(fidelity: Fidelity, limit_pp: float) -> str:
    """Return why the samples cannot prove a drop within a limit, and how many would; "" where they can or it is larger.

    The samples are too few if even an artifact with fp32's score on every sample would not pass.
    """
    drop, count = fidelity.drop_pp, fidelity.distinct
    if drop is None or count is None or drop.high <= limit_pp or drop.estimate > limit_pp:
        return ""
    equal = drop.estimate == 0 if fidelity.lost is None else not (fidelity.lost or fidelity.won)
    if least_provable_drop(count) <= limit_pp and not equal:
        return ""
    return (
        f"{counted(count, 'distinct sample')} cannot prove a drop within {limit_pp:g} pp: the drop is "
        f"{drop.estimate:.2f} pp"
        f" ({drop.low:.2f} to {drop.high:.2f}); {needed_for_drop(fidelity, limit_pp)}"
    )


def needed_for_drop(fidelity: Fidelity, limit_pp: float) -> str:
    """Return a text with the number of samples that could prove a drop within a limit; "" where no number could."""
    count = fidelity.samples if fidelity.distinct is None else fidelity.distinct
    drop = fidelity.drop_pp
    if drop is not None and drop.high == math.inf:
        return "one sample, or one sequence of steps, has no interval: give several"
    if fidelity.lost is None and drop is not None and drop.estimate < limit_pp < drop.high:
        # a score of the whole set: its interval shrinks with the root of the number of samples
        enough = math.ceil(count * ((drop.high - drop.estimate) / (limit_pp - drop.estimate)) ** 2)
        return f"needs about {enough:,} distinct samples"
    lost, won = (min(1.0, (value or 0) / max(1, count)) for value in (fidelity.lost, fidelity.won))
    needed = samples_for_drop(limit_pp / 100, lost, won)
    return f"needs about {needed:,} distinct samples" if needed else ""
