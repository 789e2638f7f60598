"""Gates of an artifact's outputs: parity with the converted graph, equivalence with PyTorch, sanity."""

from __future__ import annotations

import dataclasses
import math

from edgeq.check.gate import decibels, unverified
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import Parity, VerifyReport
from edgeq.core.results.model import LanguageModel, LoweredModel
from edgeq.core.results.report import Gate, Reuse
from edgeq.core.schemes import (
    FLOAT_SCHEMES,
    MAX_RELATIVE_FP32,
    MAX_STEPS,
    MIN_SQNR_DB_DEEP,
    MIN_SQNR_DB_INT4,
    MIN_SQNR_DB_WEIGHTS,
    deep_sqnr_db,
    least_sqnr_db,
)
from edgeq.core.units import counted

EQUIVALENCE = "equivalence"

SIZES = "sizes"


def parity_gate(scheme: str, parity: Parity | None, why: str = "") -> Gate:
    """Compare the artifact's outputs with those of its converted graph (exit code 7).

    Quantized outputs may differ by one step. Where none is quantized, or the scheme computes in float, the
    signal-to-difference ratio in dB is compared. A deep int8 model that amplifies rounding also passes if the artifact
    differs from its graph about as little as the graph does from itself when its input changes by one int8 step
    (`deep_sqnr_db`).
    """
    by_steps = parity is not None and parity.max_steps is not None and scheme not in FLOAT_SCHEMES
    least = least_sqnr_db(scheme)
    limit = "<= 1 step" if by_steps else f">= {least:.0f} dB"
    if parity is None or parity.samples == 0:
        return unverified("parity", limit, why or "the artifact was not compared with the converted graph")
    if parity.max_steps is not None and by_steps:
        passed = parity.max_steps <= MAX_STEPS
        measured = counted(parity.max_steps, "step")
    else:
        passed = parity.sqnr_db >= least
        measured = decibels(parity.sqnr_db)
    over = counted(parity.samples, "sample")
    seen = f"{parity.differing:.2%} of outputs differ, by at most {parity.max_abs:.3g}, over {over}"
    if math.isnan(parity.sqnr_db):
        measured = decibels(parity.sqnr_db)
        what = "the artifact or its graph gives NaN, or Inf where the other does not"
        seen = f"{what}; {parity.differing:.2%} of outputs differ, over {over}"
    if not passed and parity.near_ties:
        passed = True
        seen += "; these are classes whose scores nearly tie"
    if not passed and scheme not in FLOAT_SCHEMES and parity.reaction_db is not None:
        deep = deep_sqnr_db(parity.reaction_db)
        passed = parity.sqnr_db >= deep
        limit += f", or >= {deep:.1f} dB"
        measured += "" if math.isnan(parity.sqnr_db) else f", {decibels(parity.sqnr_db)}"
        seen += f"; one int8 step at the input moves the graph itself to {parity.reaction_db:.1f} dB"
    if parity.lost:
        passed = False
        seen += f"; lost in the artifact: {', '.join(parity.lost)}"
    return Gate(
        name="parity",
        outcome="ok" if passed else "failed",
        limit=limit,
        measured=measured,
        detail=seen,
        exit_code=ExitCode.VERIFICATION,
    )


def with_reuse(gate: Gate, scheme: str, reuse: Reuse | None) -> Gate:
    """Return a parity gate; one that failed with a shipped model's ranges says what new ranges give."""
    if gate.passed or reuse is None or reuse.parity_without is None:
        return gate
    other = parity_gate(scheme, reuse.parity_without)
    helps = "which passes: omit --reuse-qparams-from" if other.passed else "which fails too: the reuse is not the cause"
    return dataclasses.replace(gate, detail=f"{gate.detail}; with all ranges new it is {other.measured}, {helps}")


def equivalence_gates(lowered: LoweredModel, scheme: str, parity: Parity | None) -> tuple[Gate, ...]:
    """Compare a float file that another exporter made, ONNX's or LiteRT's, with PyTorch (exit code 7).

    The measure is the mean difference, relative to the mean magnitude.

    The exporter translates the model operator by operator and folds constants. The ratio used for parity is dominated
    by the largest outputs and would miss an error in a small one.
    """
    if lowered.runtime not in ("onnx", "openvino", "litert") or scheme != "fp32":
        return ()
    limit = f"<= {MAX_RELATIVE_FP32:.0e} of the mean magnitude"
    if parity is None or parity.mean_abs is None or not parity.mean_magnitude:
        return (unverified(EQUIVALENCE, limit, "there is no PyTorch output to compare with, or all of them are zero"),)
    relative = parity.mean_abs / parity.mean_magnitude
    return (
        Gate(
            name=EQUIVALENCE,
            outcome="ok" if relative <= MAX_RELATIVE_FP32 else "failed",
            limit=limit,
            measured=f"{relative:.1e}",
            detail=f"mean difference {parity.mean_abs:.3g} at mean magnitude {parity.mean_magnitude:.3g},"
            f" over {counted(parity.samples, 'sample')}",
            exit_code=ExitCode.VERIFICATION,
        ),
    )


def outputs_gate(verified: VerifyReport) -> Gate:
    """Fail on outputs that are wrong regardless of limits: NaN, Inf, constant, wrong shape (exit code 7)."""
    limit = "finite, of the stated shape, not constant"
    if verified.graph_only is not None or not (verified.outputs or verified.findings):
        why = verified.graph_only.why if verified.graph_only else "the artifact was not run"
        return unverified("outputs", limit, why)
    return Gate(
        name="outputs",
        outcome="failed" if verified.findings else "ok",
        limit=limit,
        measured=counted(len(verified.findings), "finding") if verified.findings else "as stated",
        detail="; ".join(verified.findings),
        exit_code=ExitCode.VERIFICATION,
    )


def sizes_gates(scheme: str, verified: VerifyReport) -> tuple[Gate, ...]:
    """Judge the artifact at each of the sizes that were tried, as `parity_gate` does over all samples (exit code 7).

    None where no size varies. What happens outside of the range fails nothing, and is said.
    """
    report = verified.sizes
    if report is None:
        return ()
    has_graph = verified.graph_only is not None or any(run.parity is not None for run in report.runs)
    limit = "runs as its graph at every size" if has_graph else "runs at every size"
    if verified.graph_only is not None:
        return (unverified(SIZES, limit, verified.graph_only.why),)
    wrong = []
    for run in report.runs:
        parity = parity_gate(scheme, run.parity) if run.parity is not None else None
        if run.problem:
            wrong.append(f"at {run.text}, {run.problem}")
        elif parity is not None and not parity.passed:
            wrong.append(f"at {run.text}, {parity.measured} instead of {parity.limit}: {parity.detail}")
    beyond = [run.text for run in report.beyond]
    return (
        Gate(
            name=SIZES,
            outcome="failed" if wrong else "ok",
            limit=limit,
            measured=f"{counted(len(wrong), 'size')} of {len(report.runs)} wrong"
            if wrong
            else f"{counted(len(report.runs), 'size')} as stated",
            detail="; ".join(wrong or [*(f"at {run.text}" for run in report.runs), *beyond]),
            exit_code=ExitCode.VERIFICATION,
        ),
    )


CONTINUATION = "continuation"

# one call has fewer outputs than a window of the text, and may lie so much further from the graph
_CALL_DB = 6.0


def continuation_gates(scheme: str, verified: VerifyReport, language: LanguageModel | None) -> tuple[Gate, ...]:
    """Judge a language model on a prompt and the tokens after it, against its graph (exit code 7); none for others."""
    report = verified.continuation
    if language is None:
        return ()
    limit = "says the next tokens that its graph says"
    if report is None or report.as_graph is None or report.sqnr_db is None:
        missing = "there is no float model or graph to compare with"
        return (unverified(CONTINUATION, limit, verified.stand_in or missing),)
    prefill_db = verified.parity.sqnr_db if verified.parity else math.inf
    least_db = max(MIN_SQNR_DB_DEEP, min(least_sqnr_db(scheme), prefill_db) - _CALL_DB)
    passed = report.as_graph == report.tokens and report.sqnr_db >= least_db
    why = "the keys and values of earlier calls, or what is made of them, are not the graph's"
    detail = f"{decibels(report.sqnr_db)} against the graph's logits, at least {decibels(least_db)} wanted"
    detail += f"; {report.as_fp32} of {report.tokens} as fp32, after a prompt of {counted(report.prompt, 'token')}"
    return (
        Gate(
            name=CONTINUATION,
            outcome="ok" if passed else "failed",
            limit=limit,
            measured=f"{report.as_graph} of {report.tokens}",
            detail=detail if passed else f"{detail}; {why}",
            exit_code=ExitCode.VERIFICATION,
        ),
    )


WEIGHTS_GATE = "weights"


def weights_gates(lowered: LoweredModel) -> tuple[Gate, ...]:
    """Judge the compressed weights that were read back from an artifact (exit code 7); none where none was read."""
    found, least, which = lowered.weights_sqnr_db, MIN_SQNR_DB_WEIGHTS, ""
    if lowered.int4_db:
        name, found = min(lowered.int4_db, key=lambda item: -math.inf if math.isnan(item[1]) else item[1])
        least, which = MIN_SQNR_DB_INT4, f": {name}"
    if found is None:
        return ()
    passed = found >= least
    return (
        Gate(
            name=WEIGHTS_GATE,
            outcome="ok" if passed else "failed",
            limit=f">= {least:.0f} dB",
            measured="equal" if found == math.inf else f"{found:.1f} dB",
            detail="the compressed weights in the artifact against the graph's, the worst of them"
            + ("" if passed else which),
            exit_code=ExitCode.VERIFICATION,
        ),
    )


GRAPH_GATE = "graph"


def graph_gates(verified: VerifyReport) -> tuple[Gate, ...]:
    """Return the gate of the converted graph's own outputs (exit code 7); none where the artifact was run.

    It can only fail an artifact; parity, outputs and accuracy stay unverified.
    """
    only = verified.graph_only
    if only is None:
        return ()
    return (
        Gate(
            name=GRAPH_GATE,
            outcome="failed" if only.findings else "ok",
            limit="finite, not constant",
            measured=counted(len(only.findings), "finding") if only.findings else "as stated",
            detail="; ".join(only.findings)
            or f"the converted graph over {counted(only.fidelity.samples, 'sample')}; {only.why}",
            exit_code=ExitCode.VERIFICATION,
        ),
    )
