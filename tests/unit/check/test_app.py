"""The app's sums: each ABI by itself, libraries counted once, and what is not known never counts as nothing."""

from __future__ import annotations

from pathlib import Path

from edgeq.check.app import Shipped, app_gates
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.report import AppOptions, CheckReport, Library, PackageResult
from edgeq.core.targets import load_target

NOTHING = VerifyReport(host="host x86_64", outputs=(), findings=())
LIBRARIES = ((("executorch", "android-arm64"), 500), (("torchscript", "android-arm64"), 700))


def shipped(model: str, target: str, size: int, scheme: str = "static-int8") -> Shipped:
    row = PackageResult(
        model=model,
        target=target,
        scheme=scheme,
        path=Path("out"),
        digest="0" * 64,
        size_bytes=size,
        download_bytes=size // 2,
        fp32_bytes=0,
        verified=NOTHING,
        checked=CheckReport(gates=()),
        delegated_macs=None,
        weights="file",
    )
    return Shipped(row=row, target=load_target(target))


def test_models_and_each_runtime_once_are_summed_for_each_abi():
    items = [
        shipped("a", "android-arm64-xnnpack", 100),
        shipped("b", "android-arm64-xnnpack", 200),
        shipped("b", "android-arm64-qnnpack", 300),
        shipped("a", "ios-arm64-xnnpack", 10_000),
    ]
    options = AppOptions(size_bytes=1800, runtime_bytes=LIBRARIES)
    android, ios = app_gates(items, options, found={}, missing=())
    assert (android.name, android.outcome, android.measured) == ("size of the app for android-arm64", "ok", "1.80 kB")
    assert (ios.outcome, ios.exit_code) == ("failed", ExitCode.SIZE)
    (tight, _) = app_gates(items, AppOptions(size_bytes=1799, runtime_bytes=LIBRARIES), found={}, missing=())
    assert (tight.outcome, tight.exit_code) == ("failed", ExitCode.SIZE)


def test_of_several_schemes_the_largest_counts():
    items = [
        shipped("a", "android-arm64-xnnpack", 100),
        shipped("a", "android-arm64-xnnpack", 400, scheme="fp32"),
    ]
    (gate,) = app_gates(items, AppOptions(size_bytes=899, runtime_bytes=LIBRARIES), found={}, missing=())
    assert gate.outcome == "failed"
    (gate,) = app_gates(items, AppOptions(size_bytes=900, runtime_bytes=LIBRARIES), found={}, missing=())
    assert gate.outcome == "ok"


def test_a_library_of_unknown_size_never_counts_as_nothing():
    items = [shipped("a", "android-arm64-xnnpack", 100)]
    (gate,) = app_gates(items, AppOptions(download_bytes=10**6), found={}, missing=())
    assert (gate.outcome, gate.exit_code, gate.measured) == ("unverified", ExitCode.VERIFICATION, "not measured")
    assert "library size of executorch is not known" in gate.detail
    (gate,) = app_gates(items, AppOptions(download_bytes=49), found={}, missing=())
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.SIZE)


def test_a_model_that_could_not_be_built_leaves_the_sum_open():
    items = [shipped("a", "android-arm64-xnnpack", 100)]
    (gate,) = app_gates(items, AppOptions(size_bytes=10**6, runtime_bytes=LIBRARIES), found={}, missing=("b",))
    assert gate.outcome == "unverified"
    assert "b could not be built" in gate.detail


def test_without_limits_nothing_is_judged():
    assert app_gates([shipped("a", "android-arm64-xnnpack", 100)], AppOptions(), found={}, missing=("b",)) == ()


def test_a_library_on_this_machine_counts_unless_people_gave_its_size():
    items = [shipped("a", "android-arm64-xnnpack", 100)]
    key = ("executorch", "android-arm64")
    found = {key: Library(size_bytes=900, download_bytes=300, origin="in some.aar on this machine")}
    size, download = app_gates(items, AppOptions(size_bytes=1000, download_bytes=349), found=found, missing=())
    assert (size.outcome, size.measured) == ("ok", "1.00 kB")
    assert "some.aar" in size.detail
    assert download.outcome == "failed"  # 50 + 300
    options = AppOptions(size_bytes=1000, runtime_bytes=((key, 901),))
    (given,) = app_gates(items, options, found=found, missing=())
    assert given.outcome == "failed"
    assert "as given" in given.detail


def test_a_target_that_was_refused_leaves_the_sum_of_its_abi_open():
    items = [shipped("a", "android-arm64-xnnpack", 100)]
    options = AppOptions(size_bytes=10**6, runtime_bytes=LIBRARIES)
    refused = [("a", load_target("ios-arm64-xnnpack"))]
    android, ios = app_gates(items, options, found={}, missing=(), refused=refused)
    assert android.outcome == "ok"
    assert (ios.name, ios.outcome) == ("size of the app for ios-arm64", "unverified")
    assert "a for ios-arm64-xnnpack could not be built" in ios.detail
