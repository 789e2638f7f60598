"""What is offered for a name that is not known: what people mean by it."""

from __future__ import annotations

from typing import get_args

import pytest

from edgeq.config.options import validated
from edgeq.core.errors import UsageError, nearest
from edgeq.core.profiles import profile_files
from edgeq.core.schemes import SchemeName


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
