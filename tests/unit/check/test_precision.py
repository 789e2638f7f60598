from __future__ import annotations

import dataclasses
import math

import pytest

from edgeq.check.precision import audit_gates, audit_warnings, table_warnings
from edgeq.core.errors import ExitCode
from edgeq.core.results.model import BEFORE_LOGARITHM, NO_KERNEL, RECURRENT, TRANSPOSED, Layer, ModelWork

from .gate_builders import kernels, lowered, target, verified


def audited(scheme="static-int8", model=None, report=None, name="android-arm64-xnnpack", kept=(), in_float=None):
    gates = audit_gates(
        target=target(name),
        scheme=scheme,
        lowered=model or lowered(),
        verified=report or verified(),
        asked_fp32=kept,
        in_float=in_float,
    )
    return {gate.name: gate for gate in gates}


def test_shares_at_the_least_pass_and_below_it_fail():
    at = audited(report=verified(kernels=kernels(0.95)))["int8_macs"]
    below = audited(report=verified(kernels=kernels(math.nextafter(0.95, 0))))["int8_macs"]
    assert (at.outcome, below.outcome, below.exit_code) == ("ok", "failed", ExitCode.VERIFICATION)


@pytest.mark.parametrize(("share", "outcome"), [(0.95, "ok"), (0.949, "failed"), (math.nan, "failed")])
def test_the_delegated_share_is_the_lowered_models(share, outcome):
    assert audited(model=lowered(delegated=share))["delegated_macs"].outcome == outcome


def test_by_how_much_is_told():
    gate = audited(report=verified(kernels=kernels(0.5)))["int8_macs"]
    assert (gate.measured, gate.limit, gate.detail) == (
        "50.0%",
        ">= 95.0% of MACs",
        "45 points short; --scheme dynamic-int8 computes linear and recurrent layers in int8",
    )


def test_a_share_of_nan_fails():
    assert audited(report=verified(kernels=kernels(math.nan)))["int8_macs"].outcome == "failed"


@pytest.mark.parametrize(
    ("share", "why"), [(None, "the runtime gave no profile"), (kernels(None, "73 events, 70 layers"), "73 events")]
)
def test_an_unread_profile_is_unverified_with_its_reason(share, why):
    gate = audited(report=verified(kernels=share))["int8_macs"]
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert why in gate.detail


def test_an_unknown_delegated_share_is_unverified():
    assert audited(model=lowered(delegated=None))["delegated_macs"].outcome == "unverified"


def test_only_what_the_profile_asks_of_this_scheme_is_audited():
    assert list(audited()) == ["int8_macs", "delegated_macs"]
    assert list(audited(scheme="fp32")) == ["delegated_macs"]
    assert list(audited(name="linux-x86_64-x86")) == ["int8_macs"]
    assert list(audited(name="linux-x86_64-x86", scheme="fp32")) == []


def stored(*pairs):
    return dataclasses.replace(lowered(), stored=pairs)


@pytest.mark.parametrize(
    ("scheme", "name", "dtype"),
    [("weight-only-int8", "int8_weights", "int8"), ("fp16", "half_weights", "float16")],
)
def test_what_a_torchscript_artifact_stores_is_counted(scheme, name, dtype):
    enough, short = (stored((dtype, count), ("float32", 100 - count)) for count in (80, 79))
    gates = [audited(scheme, model, name="linux-x86_64-x86")[name] for model in (enough, short, lowered())]
    assert [gate.outcome for gate in gates] == ["ok", "failed", "unverified"]
    assert gates[1].limit == ">= 80.0% of constants"
    indexed = stored((dtype, 80), ("float32", 20), ("int64", 500), ("bool", 500))  # no weights
    assert audited(scheme, indexed, name="linux-x86_64-x86")[name].outcome == "ok"


@pytest.mark.parametrize("name", ["android-arm64-xnnpack", "linux-x86_64-x86", "linux-x86_64-ort"])
@pytest.mark.parametrize(
    ("macs", "weights", "outcome"),
    [(0.003, 4, "failed"), (0.25, 4, "ok"), (0.003, 25, "ok"), (None, 4, "unverified"), (0.003, None, "unverified")],
)
def test_dynamic_that_gains_neither_macs_nor_size_fails(name, macs, weights, outcome):
    model = lowered() if weights is None else stored(("float32", 100 - weights), ("int8", weights))
    share = dataclasses.replace(kernels(macs), int8_linear_macs=1.0)
    assert audited("dynamic-int8", model, verified(kernels=share), name)["int8_gain"].outcome == outcome


def test_dynamic_is_held_to_its_linear_layers_and_half_to_its_kernels():
    mixed = dataclasses.replace(kernels(0.4), int8_linear_macs=1.0)
    assert audited("dynamic-int8", report=verified(kernels=mixed))["int8_linear_macs"].outcome == "ok"
    assert audited("dynamic-int8", report=verified(kernels=kernels(1.0)))["int8_linear_macs"].outcome == "unverified"
    half = dataclasses.replace(kernels(0.0), half_macs=0.9)
    assert audited("fp16", report=verified(kernels=half))["half_macs"].outcome == "failed"


def test_layers_in_float_before_a_logarithm_are_in_the_plan_and_others_are_not():
    layers = [("front", 60, "other", False), ("body", 40, "int8", False)]
    gates, warnings = ran(*layers, in_float={BEFORE_LOGARITHM: ["front"]})
    assert gates["int8_macs"].outcome == "ok"
    assert "60.0% by logarithms that follow" in gates["int8_macs"].detail
    assert "60.0% by logarithms that follow" in warnings[0]
    assert ran(*layers)[0]["int8_macs"].outcome == "failed"
    gates, _ = ran(*layers, ("tail", 10, "other", False), in_float={BEFORE_LOGARITHM: ["front"]})
    assert gates["int8_macs"].outcome == "failed"
    assert "not in int8: tail" in gates["int8_macs"].detail


@pytest.mark.parametrize("reason", [RECURRENT, NO_KERNEL, TRANSPOSED])
def test_layers_without_a_kernel_are_in_the_plan_where_enough_else_is_in_int8(reason):
    planned = {reason: ["rnn"]}
    gates, warnings = ran(("front", 30, "int8", False), ("rnn", 70, "other", False), in_float=planned)
    assert (gates["int8_macs"].outcome, len(warnings)) == ("ok", 1)
    assert ("; --scheme dynamic-int8 computes them in int8" in warnings[0]) == (reason == RECURRENT)
    gates, _ = ran(("rnn", 76, "other", False), ("head", 24, "int8", False), in_float=planned)
    assert gates["int8_macs"].outcome == "failed"
    assert "dynamic-int8" in gates["int8_macs"].detail


def test_a_dynamic_scheme_that_leaves_nearly_all_in_float_by_plan_gains_nothing():
    layers = [("gru", 99, "other", False), ("head", 1, "int8", False)]
    gates, _ = ran(*layers, scheme="dynamic-int8", in_float={NO_KERNEL: ["gru"]})
    assert gates["int8_linear_macs"].outcome == "failed"
    assert gates["int8_gain"].outcome != "ok"


def ran(*layers, scheme="static-int8", kept=(), in_float=None):
    """Audit layers of a name, MACs, precision, and whether they multiply two activations."""
    found = [
        Layer(name=name, op="bmm" if product else "linear", macs=macs, weight_bytes=1, delegated=True,
              of_activations=product)
        for name, macs, _, product in layers
    ]  # fmt: skip
    model = dataclasses.replace(lowered(), layers=tuple(found))
    int8 = sum(macs for _, macs, kind, _ in layers if kind == "int8") / sum(macs for _, macs, *_ in layers)
    share = dataclasses.replace(kernels(int8), precisions=tuple(kind for *_, kind, _ in layers), int8_linear_macs=int8)
    report = verified(kernels=share)
    warnings = audit_warnings(
        target=target("android-arm64-xnnpack"),
        scheme=scheme,
        lowered=model,
        verified=report,
        asked_fp32=kept,
        in_float=in_float,
    )
    return audited(scheme, model, report, kept=kept, in_float=in_float), warnings


def test_only_layers_that_were_meant_for_int8_are_audited():
    layers = (("a", 50, "int8", False), ("b", 30, "other", False), ("scores", 20, "other", True))
    gates, warnings = ran(*layers, kept=("b",))
    assert (gates["int8_macs"].outcome, gates["int8_macs"].measured) == ("ok", "100.0%")
    assert gates["int8_macs"].detail == (
        "5 points above over the layers that were meant for int8; 50.0% over all, "
        "left in float: 30.0% by --keep-fp32, 20.0% by products of activations"
    )
    assert warnings == ()


def test_a_layer_in_float_that_nobody_asked_for_fails_and_is_named():
    layers = (("a", 50, "int8", False), ("b", 30, "other", False), ("c", 20, "other", False), ("s", 9, "other", True))
    gates, _ = ran(*layers, kept=("c",))
    gate = gates["int8_macs"]
    assert (gate.outcome, gate.measured, gate.exit_code) == ("failed", "62.5%", ExitCode.VERIFICATION)
    assert gate.detail.endswith("; not in int8: b; --scheme dynamic-int8 computes linear and recurrent layers in int8")
    assert ran(("a", 50, "int8", False), ("b", 30, "other", False))[0]["int8_macs"].outcome == "failed"


def test_a_few_layers_in_float_are_offered_to_be_kept():
    layers = [("a", 50, "int8", False), ("b", 10, "other", False), ("c#1", 30, "other", False), ("d", 9, "other", True)]
    gates, _ = ran(*layers, ("e", 5, "other", False), scheme="dynamic-int8", kept=("e",))
    told = "; c, b ran in float: if that may stay so, add --keep-fp32 c --keep-fp32 b"
    assert gates["int8_linear_macs"].detail.endswith(told)
    many = [(f"x{i}", 10, "other", False) for i in range(4)]
    gates, _ = ran(*layers[:1], *many, scheme="dynamic-int8")
    assert gates["int8_linear_macs"].outcome == "failed"
    assert "--keep-fp32" not in gates["int8_linear_macs"].detail


def test_where_all_or_none_was_meant_for_int8_the_plain_share_counts():
    gates, _ = ran(("a", 50, "other", False), ("b", 30, "other", False), kept=("a", "b"))
    assert (gates["int8_macs"].outcome, gates["int8_macs"].measured) == ("failed", "0.0%")


def test_linear_layers_that_people_keep_are_not_missing_from_dynamic_int8():
    gates, _ = ran(("a", 70, "int8", False), ("b", 30, "other", False), scheme="dynamic-int8", kept=("b",))
    assert gates["int8_linear_macs"].outcome == "ok"
    gates, _ = ran(("a", 70, "int8", False), ("b", 30, "other", False), scheme="dynamic-int8")
    assert gates["int8_linear_macs"].outcome == "failed"


def test_mostly_float_by_intention_is_warned_of_with_the_scheme_that_suits():
    gates, (warning,) = ran(("a", 30, "int8", False), ("scores", 70, "other", True))
    assert gates["int8_macs"].outcome == "ok"
    assert "only 30.0% of the MACs are in int8, left in float: 70.0% by products of activations" in warning
    assert "dynamic-int8 may suit" in warning


def test_tables_of_embeddings_in_float_are_told_where_they_are_most_of_the_weights():
    def warned(share, scheme="static-int8", name="android-arm64-xnnpack", stored=()):
        model = dataclasses.replace(lowered(), stored=stored)
        return table_warnings(target(name), scheme, model, ModelWork(linear_macs=100, table_share=share))

    (said,) = warned(0.951)
    assert said == (
        "the tables of embeddings, 95.1% of the weights, are in float32; --scheme dynamic-int8 stores them in int8"
    )
    assert "--scheme weight-only-int8" in warned(0.5, name="linux-x86_64-openvino")[0]
    assert warned(0.9, stored=(("float32", 90), ("int8", 10)))
    # few of the weights, no static scheme, a runtime whose tables are not known, tables that the artifact has in int8
    assert not warned(0.499)
    assert not warned(0.9, scheme="dynamic-int8")
    assert not warned(0.9, name="android-arm64-litert")
    assert not warned(0.9, stored=(("float32", 10), ("int8", 90)))
    assert not table_warnings(target(), "static-int8", lowered(), None)
