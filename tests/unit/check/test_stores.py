from __future__ import annotations

import re

import pytest

from edgeq.check.stores import find_store_limit, store_gate, store_limits, store_warnings
from edgeq.core.errors import ExitCode, UsageError

from .gate_builders import target

MB = 10**6
TARGETS = {"android": "android-arm64-xnnpack", "ios": "ios-arm64-xnnpack", "any": "linux-x86_64-x86"}

# as read for the field notes; a change of a figure is to be a change here too
FIGURES = {
    "play-base-module": (200 * MB, "compressed download", True),
    "play-feature-module": (200 * MB, "compressed download", False),
    "play-asset-pack": (1500 * MB, "compressed download", False),
    "play-ai-pack": (1500 * MB, "compressed download", False),
    "play-install-time": (4000 * MB, "compressed download", True),
    "play-pack-mobile-data": (200 * MB, "compressed download", False),
    "app-store-ios-app": (4000 * MB, "uncompressed", True),
    "app-store-watchos": (75 * MB, "uncompressed", True),
    "app-clip-ios17-digital": (100 * MB, "uncompressed", True),
    "app-clip-ios16": (15 * MB, "uncompressed", True),
    "app-clip-ios15": (10 * MB, "uncompressed", True),
    "on-demand-resources": (512 * MB, "uncompressed", False),
    "on-demand-resources-ios18": (8000 * MB, "uncompressed", False),
    "background-assets": (200_000 * MB, "uncompressed", False),
    "cellular-prompt": (200 * MB, "uncompressed", True),
    "firebase-ml": (40 * MB, "uncompressed", False),
}


def held(preset, total, app=3):
    """The gate where what the preset counts adds up to `total` bytes, and what it does not count is far over it."""
    limit = store_limits()[preset]
    model = total - (app if limit.counts_app else 0)
    huge = 10**15
    packed = limit.basis == "compressed download"
    return store_gate(
        preset, app, huge if packed else model, model if packed else huge, target(TARGETS[limit.platform])
    )


def test_the_presets_are_those_of_the_field_notes():
    read = {name: (limit.limit_bytes, limit.basis, limit.counts_app) for name, limit in store_limits().items()}
    assert read == FIGURES


@pytest.mark.parametrize("preset", FIGURES)
@pytest.mark.parametrize(("over", "outcome"), [(-1, "ok"), (0, "ok"), (1, "failed")])
def test_one_byte_decides(preset, over, outcome):
    gate = held(preset, FIGURES[preset][0] + over)
    assert (gate.name, gate.outcome, gate.exit_code) == (preset, outcome, ExitCode.SIZE)


@pytest.mark.parametrize("preset", FIGURES)
def test_every_figure_has_its_date_and_source(preset):
    limit = store_limits()[preset]
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", limit.as_of)
    assert limit.source
    assert limit.note
    assert limit.as_of in held(preset, 1000).detail


@pytest.mark.parametrize("preset", [name for name, figures in FIGURES.items() if figures[2]])
def test_a_preset_that_counts_the_app_needs_its_size(preset):
    with pytest.raises(UsageError, match="--app-size"):
        find_store_limit(preset, None)
    assert find_store_limit(preset, 0).counts_app


def test_a_pack_of_its_own_needs_no_app_size():
    gate = store_gate("play-asset-pack", None, 1, 1, target("android-arm64-xnnpack"))
    assert gate.passed


def test_an_unknown_preset_offers_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'play-base-module'"):
        find_store_limit("play-base-modul", 1)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("play-base-module", "ios-arm64-xnnpack"),
        ("play-asset-pack", "linux-x86_64-x86"),
        ("app-store-ios-app", "android-arm64-xnnpack"),
    ],
)
def test_another_platforms_store_is_refused(preset, name):
    with pytest.raises(UsageError, match=name):
        store_gate(preset, 1, 1, 1, target(name))


@pytest.mark.parametrize(
    ("presets", "name", "warned"),
    [
        (("play-base-module",), "android-arm64-qnnpack", True),
        (("firebase-ml", "play-asset-pack"), "android-arm64-qnnpack", True),
        (("firebase-ml",), "android-arm64-qnnpack", False),
        (("play-base-module",), "android-arm64-xnnpack", False),
        ((), "android-arm64-qnnpack", False),
    ],
)
def test_play_warns_of_the_library_that_is_not_aligned(presets, name, warned):
    warnings = store_warnings(presets, target(name))
    assert bool(warnings) == warned
    assert all("pytorch#154449" in warning for warning in warnings)
