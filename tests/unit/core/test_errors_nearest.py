"""What is offered for a name that is not known: what people mean by it."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from edgeq.config.options import validated
from edgeq.core.errors import Findings, UsageError, nearest
from edgeq.core.profiles import profile_files
from edgeq.core.schema import explain
from edgeq.core.schemes import SchemeName
from edgeq.core.targets import TargetProfile


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("int8", "'static-int8'"),
        ("INT8", "'static-int8'"),
        ("qat", "'qat-int8'"),
        ("float16", "'fp16'"),
        ("half", "'fp16'"),
        ("dynamic", "'dynamic-int8'"),
        ("static-int-8", "'static-int8'"),
    ],
)
def test_a_scheme(name: str, offered: str) -> None:
    assert nearest(name, get_args(SchemeName)) == f" Did you mean {offered}?"


def test_a_platform_offers_its_targets() -> None:
    known = profile_files()
    android = [name for name in known if name.startswith("android-")]
    assert nearest("android", known) == f" Did you mean one of {', '.join(map(repr, android))}?"
    assert all(name in nearest("xnnpack", known) for name in known if name.endswith("-xnnpack"))
    assert nearest("android-arm64-xnpack", known) == " Did you mean 'android-arm64-xnnpack'?"
    assert nearest("completely else", known) == ""


@pytest.mark.parametrize(
    ("values", "offered"),
    [
        ({"metric": "f1"}, "unknown key 'metric'. Did you mean 'data.metric'?"),
        ({"epochs": 3}, "unknown key 'epochs'. Did you mean 'qat.epochs'?"),
        ({"data": {"metrc": "f1"}}, "unknown key 'data.metrc'. Did you mean 'metric'?"),
    ],
)
def test_a_key_of_a_table(values: dict[str, object], offered: str) -> None:
    with pytest.raises(UsageError) as caught:
        validated(values, "edgeq.toml")
    assert offered in caught.value.what


def test_all_findings_of_a_target_file_are_shown() -> None:
    text = {
        "name": "Bad Name", "description": "x", "platform": "androit", "arch": "arm64", "runtime": "executorch",
        "backend": "xnnpack", "shcemes": ["fp32"], "schemes": ["int8"], "app": {"runtimes": ["1.5"]},
    }  # fmt: skip
    with pytest.raises(ValidationError) as caught:
        TargetProfile.model_validate(text)
    error = explain(caught.value, "bad.toml", TargetProfile)
    assert isinstance(error, Findings)
    assert [one.what.partition(", got")[0] for one in error.findings] == [
        "bad.toml: name: String should match pattern '^[a-z0-9][a-z0-9_.-]{0,63}$'",
        "bad.toml: platform: unknown value 'androit'. Did you mean 'android'?",
        "bad.toml: schemes.0: unknown value 'int8'. Did you mean 'static-int8'?",
        "bad.toml: unknown key 'shcemes'. Did you mean 'schemes'?",
    ]
