"""Which scheme is a target's default for a model, by what the model computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core.config import Job
from edgeq.core.results.model import ModelWork
from edgeq.core.schemes import DEFAULT, default_schemes
from edgeq.core.targets import load_target
from edgeq.pipeline.auto import choose_default

X86, XNNPACK, QNNPACK = "linux-x86_64-x86", "android-arm64-xnnpack", "android-arm64-qnnpack"
ORT, PHONE_ORT, OPENVINO = "linux-x86_64-ort", "android-arm64-ort", "linux-x86_64-openvino"

CONVOLUTIONS = ModelWork(convolution_macs=97, linear_macs=3)
PERCEPTRON = ModelWork(linear_macs=100)
TRANSFORMER = ModelWork(convolution_macs=2, linear_macs=90, attention_macs=8, attention_products=8)
# dynamic-int8 would compute a quarter of the first in int8, and a fifth of the second
HYBRID = ModelWork(convolution_macs=65, linear_macs=25, attention_macs=10, attention_products=4)
ONE_BLOCK = ModelWork(convolution_macs=70, linear_macs=20, attention_macs=10, attention_products=2)
LSTM, GRU, RNN = ModelWork(lstm_macs=90, linear_macs=10), ModelWork(gru_macs=100), ModelWork(rnn_macs=100)
SPEECH = ModelWork(convolution_macs=60, lstm_macs=40)
RECOMMENDER, TEXT_CNN = ModelWork(linear_macs=100, table_share=0.9), ModelWork(convolution_macs=100, table_share=0.9)
SMALL_TABLE = ModelWork(linear_macs=100, table_share=0.5)


@pytest.mark.parametrize(
    ("work", "target", "expected"),
    [
        *((work, X86, "static-int8") for work in (CONVOLUTIONS, PERCEPTRON, ONE_BLOCK, SPEECH)),
        *((work, ORT, "static-int8") for work in (CONVOLUTIONS, PERCEPTRON, ONE_BLOCK, SPEECH)),
        *((work, X86, "static-int8") for work in (TEXT_CNN, SMALL_TABLE)),  # nothing to gain for the first
        *((RECOMMENDER, target, "dynamic-int8") for target in (X86, XNNPACK, QNNPACK, ORT)),
        (RECOMMENDER, OPENVINO, "weight-only-int8"),
        (RECOMMENDER, PHONE_ORT, "dynamic-int8"),
        (RECOMMENDER, "android-arm64-litert", "static-int8"),  # what its converter makes of tables is not known
        *((TRANSFORMER, target, "dynamic-int8") for target in (X86, XNNPACK, QNNPACK, ORT)),
        *((HYBRID, target, "dynamic-int8") for target in (X86, XNNPACK, QNNPACK, ORT)),
        *((LSTM, target, "dynamic-int8") for target in (X86, XNNPACK, QNNPACK, ORT)),
        *((work, OPENVINO, "weight-only-int8") for work in (TRANSFORMER, HYBRID, LSTM, GRU, RNN)),
        *((GRU, target, "dynamic-int8") for target in (X86, XNNPACK, QNNPACK)),
        (GRU, ORT, "fp16"),  # quantize_dynamic knows no GRU
        (GRU, PHONE_ORT, "static-int8"),  # nothing that it has is better
        (RNN, XNNPACK, "dynamic-int8"),
        (RNN, X86, "fp16"),  # its engines have no int8 kernel of nn.RNN
        (TRANSFORMER, "ios-arm64-coreml", "fp16"),
        (TRANSFORMER, "android-arm64-qnn-htp", "static-a16w8"),
        (TRANSFORMER, "linux-x86_64-cuda", "fp16"),
    ],
)
def test_the_work_decides(work, target, expected):
    profile = load_target(target)
    scheme, why = choose_default(profile, work)
    assert scheme == expected
    assert scheme in default_schemes(profile.schemes)
    assert why


def test_without_knowledge_of_the_model_it_is_the_first():
    for work in (None, ModelWork()):
        assert choose_default(load_target(X86), work) == ("static-int8", "")


def test_a_profile_with_another_first_scheme_has_chosen_for_all_models():
    profile = load_target(X86)
    for first in ("qat-int8", "fp32"):
        own = profile.model_copy(update={"schemes": (first, "static-int8", "dynamic-int8")})
        assert choose_default(own, TRANSFORMER)[0] == first
    alone = profile.model_copy(update={"schemes": ("static-int8",)})
    assert choose_default(alone, TRANSFORMER)[0] == "static-int8"


def job(target: str, **options) -> Job:
    return Job(**{"source": "net.py:model", "targets": (load_target(target),), "out": Path()} | options)


def test_only_a_model_that_is_yet_to_be_loaded_leaves_the_default_open():
    profile = load_target(X86)
    assert job(X86).schemes_of(profile) == (DEFAULT,)
    assert job(X86).possible_schemes(profile) == {"static-int8", "dynamic-int8", "weight-only-int8", "fp16"}
    assert job(X86, schemes=("fp32",)).schemes_of(profile) == ("fp32",)
    assert job(X86, source="net.ptl").schemes_of(profile) == ("static-int8",)
    assert job(X86, reuse_qparams_from=Path("shipped")).schemes_of(profile) == ("static-int8",)
    assert job("ios-arm64-coreml").schemes_of(load_target("ios-arm64-coreml")) == ("fp16",)
