"""Confidence intervals of shares and of paired differences.

No interval has length zero: if none of a few samples changed, another one still might.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

Z95 = 1.959964  # the normal distribution's 97.5% point

_SAME = 1e-6  # scores that differ by less are equal but for rounding


def two_sided_z(count: int) -> float:
    """Return the normal distribution's point that makes `count` intervals of 95% hold together (Bonferroni)."""
    return Z95 if count <= 1 else NormalDist().inv_cdf(1 - 0.025 / count)


def effective_count(keys: Sequence[Hashable]) -> float:
    """Return the effective number of independent samples of a mean over `keys`; equal keys are repeats.

    Kish's effective sample size, (sum w)² / sum w², where w is how often a sample is repeated: 12 samples repeated a
    hundred times each count as 12.
    """
    times = Counter(keys).values()
    return sum(times) ** 2 / sum(w * w for w in times) if times else 0.0


def matched_pairs(lost: float, won: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Return the interval of the difference of two shares on the same samples, (lost - won) / count.

    Agresti and Min's for matched pairs (Statistics in Medicine 24, 2005): half an observation is added to each of the
    four cells, so that a few samples without any disagreement do not prove equality.

    Args:
        lost: samples that only the first got right.
        won: samples that only the second got right.
        count: of all samples.
        z: the normal distribution's point.
    """
    more, less, total = lost + 0.5, won + 0.5, count + 2
    centre = (more - less) / total
    half = z * math.sqrt((more + less) - (more - less) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def least_provable_drop(count: float) -> float:
    """Return the drop, in percentage points, that samples scored 0 or 1 prove where none of them changes."""
    return 100 * matched_pairs(0, 0, count)[1]


def beyond_proof(count: int, limit_pp: float) -> str:
    """Return that samples, scored 0 or 1, are too few to prove a drop within a limit; "" where they can."""
    least = least_provable_drop(count)
    if least <= limit_pp:
        return ""
    proven = f"{count:,} distinct samples prove a drop within {least:.2f} pp at best, where no answer changes"
    return f"{proven}; {limit_pp:g} pp needs {samples_for_drop(limit_pp / 100, 0, 0):,}"


def mean_difference_half_width(differences: Sequence[float], count: float, span: float) -> float:
    """Return half the 95% interval of a mean of paired differences of scores with values other than 0 and 1.

    Student's t, t(97.5%, n - 1) · s / √n, and as much again, in quadrature, as half an observation of the largest
    difference on each side would add to it: differences that are all zero have no spread, but prove as little as those
    of scores of 0 and 1. Where most pairs are equal, the largest difference is taken to be the span of the scores; but
    of scores that tell most samples apart, such as the Dice of masks, it is the largest one seen. Outputs that change a
    little change such a score a little, so that equal scores prove more than slightly unequal ones, not less.

    Args:
        differences: one for each sample.
        count: how many independent samples they are.
        span: the largest score less the smallest one, 1 where all are equal; 0 of scores that tell most samples apart.
    """
    if count < 2:
        return math.inf
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((value - mean) ** 2 for value in differences) / len(differences)
    spread *= count / (count - 1)
    largest = max(abs(value) for value in differences)
    if 2 * sum(abs(value) > _SAME for value in differences) < len(differences):
        largest = max(largest, span, _SAME)
    student = student_t975(max(1, round(count) - 1)) * math.sqrt(spread / count)
    return math.hypot(student, Z95 * largest / (count + 2))


def student_t975(freedom: int) -> float:
    """Return Student's 97.5% point by its expansion around the normal one (Abramowitz and Stegun 26.7.5)."""
    if freedom < 5:  # where the expansion is off by more than a percent
        return (12.706, 4.303, 3.182, 2.776)[freedom - 1]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom ** (power + 1)) for power, term in enumerate(terms))


def share(hits: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's interval of a share, hits / count (Journal of the American Statistical Association 22, 1927)."""
    if count <= 0:
        return 0.0, 1.0
    estimate = hits / count
    total = 1 + z * z / count
    centre = (estimate + z * z / (2 * count)) / total
    half = z * math.sqrt(estimate * (1 - estimate) / count + z * z / (4 * count * count)) / total
    return max(0.0, centre - half), min(1.0, centre + half)


def samples_for_drop(limit: float, lost_share: float, won_share: float, z: float = Z95) -> int | None:
    """Return about how many distinct samples would put the upper end of `matched_pairs` below a limit.

    Args:
        limit: the largest share that may be lost.
        lost_share: of the samples, that only the first got right so far.
        won_share: that only the second did.
        z: the normal distribution's point.

    Returns:
        The number in two digits, rounded up; None where the share lost so far already reaches the limit.
    """
    if limit <= lost_share - won_share:
        return None
    return _least(lambda n: matched_pairs(lost_share * n, won_share * n, n, z)[1] <= limit)


def samples_for_share(limit: float, hit_share: float) -> int | None:
    """Return about how many distinct samples would put the upper end of `share` below a limit; as above."""
    if limit <= hit_share:
        return None
    return _least(lambda n: share(hit_share * n, n)[1] <= limit)


def _least(enough: Callable[[int], bool]) -> int | None:
    count = 1
    while not enough(count):
        count *= 2
        if count > 10**9:
            return None
    low, high = count // 2, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    unit: int = 10 ** max(0, len(str(high)) - 2)
    return math.ceil(high / unit) * unit
