"""Verdicts on real bundles: what they settle, what they never do, and what is released after them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.bundle.golden import read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import EdgeqError, IntegrityError, UsageError, VerificationError
from edgeq.core.files import canonical_json
from edgeq.pipeline.measurement import JudgedMeasurement, _output, judge, read_verdict, settled_bundle, settled_bundles

GOLDEN = Path(__file__).parents[2] / "golden" / "0.1.0" / "digits" / "android-arm64-xnnpack"
PIXEL = {"name": "Pixel 9 (adb)", "platform": "android", "os": "Android 16", "arch": "arm64"}
MAC = {"name": "Apple M2", "platform": "macos", "os": "macOS 15.1", "arch": "arm64"}
Make = Callable[..., Path]


def gate(name: str, outcome: str, bound: float | None = None) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "limit": "a limit", "bound": bound, "detail": None}


@pytest.fixture
def bundle(tmp_path: Path) -> Make:
    """Return a maker of copies of the digits' bundle with gates of one's own; `changes` are of its manifest."""

    def make(*gates: dict[str, Any], **changes: Any) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(GOLDEN, folder)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["gates"] = list(gates)
        manifest["accepted"] = all(one["outcome"] in ("ok", "allowed") for one in gates)
        manifest["golden"].update(changes.pop("golden", {}))
        (folder / "manifest.json").write_bytes(canonical_json(manifest | changes))
        return folder

    return make


def verdict(folder: Path, outputs: Any = None, device: dict[str, Any] = PIXEL, **run: Any) -> Path:
    """Write a verdict on a bundle; by default a phone that gives the golden outputs within 9 ms."""
    made = read_bundle(folder)
    arrays = read_golden(made).outputs if outputs is None else (outputs,)
    facts = {"runtime": "executorch 1.5.1", "threads": made.manifest.threads, "warmup": 5}
    facts |= {"latencies_ms": [8.0] * 45 + [9.0] * 5, "load_ms": 5.0, "peak_memory_bytes": 10_000_000}
    document = {
        "schema_version": 1,
        "bundle": made.digest,
        "edgeq": "0.1.0",
        "date": "2026-11-21T12:00:00Z",
        "device": {"cores": 8, "is_virtual": False} | device,
        "run": facts | run,
        "outputs": [_output(array).model_dump(mode="json") for array in arrays],
    }
    path = folder.parent / "verdict.json"
    path.write_text(json.dumps(document))
    return path


def judged(folder: Path, path: Path) -> JudgedMeasurement:
    made = read_bundle(folder)
    return judge(made, read_golden(made), read_verdict(path, made))


def outcomes(found: JudgedMeasurement) -> dict[str, str]:
    return {name: one.outcome for name, one in found.settled.items()}


def test_a_phones_verdict_settles_what_nobody_measured(bundle: Make) -> None:
    gates = [gate("latency", "unverified", 8.5), gate("load", "allowed", 5.0), gate("device", "unverified")]
    folder = bundle(gate("size", "ok", 1e6), *gates, gate("peak_memory", "unverified", 1e7))
    path = verdict(folder)
    assert outcomes(judged(folder, path)) == dict.fromkeys(("latency", "load", "device", "peak_memory"), "ok")
    before = read_bundle(folder)
    with settled_bundle(folder, path, digest=before.digest) as settled:
        after = read_bundle(settled.folder)
    assert (before.manifest.accepted, after.manifest.accepted) == (False, True)
    assert {one.name: one.outcome for one in after.manifest.gates} == dict.fromkeys(
        ("size", "latency", "load", "device", "peak_memory"), "ok"
    )
    assert after.manifest.files == before.manifest.files
    told = (after.manifest.gates[1].detail or "") + str(after.manifest.model_dump())
    assert "measured on android arm64 in executorch 1.5.1" in told
    assert "Pixel" not in told
    assert not settled.folder.exists()
    assert settled.told == "latency, load, device, peak_memory: measured on Pixel 9 (adb), by its verdict"


@pytest.mark.parametrize("outcome", ["unverified", "allowed", "ok"])
@pytest.mark.parametrize(
    ("name", "bound", "told"),
    [("latency", 7.99, "latency 8.00 ms"), ("load", 4.99, "load 5.00 ms"), ("peak_memory", 9_999_999, "peak_memory")],
)
def test_a_broken_limit_is_never_released(bundle: Make, outcome: str, name: str, bound: float, told: str) -> None:
    folder = bundle(gate(name, outcome, bound))
    path = verdict(folder)
    assert outcomes(judged(folder, path)) == {name: "failed"}
    with pytest.raises(VerificationError, match=told) as caught, settled_bundle(folder, path):
        pass
    assert f"edgeq verify {folder} --verdict {path}" in caught.value.fix


def test_p90_is_taken_from_the_times_themselves(bundle: Make) -> None:
    folder = bundle(gate("latency", "unverified", 8.5))
    slow = verdict(folder, latencies_ms=[8.0] * 44 + [9.0] * 6)
    assert outcomes(judged(folder, slow)) == {"latency": "failed"}


@pytest.mark.parametrize(
    ("device", "run", "why"),
    [
        (PIXEL | {"platform": "linux"}, {}, "which is linux arm64"),
        (PIXEL | {"is_virtual": True}, {}, "emulated device"),
        (MAC, {}, "which is macos arm64"),
        (PIXEL | {"arch": "x86_64"}, {}, "which is android x86_64"),
        (PIXEL, {"threads": 8}, "timed with 8 threads, but the app uses 2"),
        (PIXEL, {"latencies_ms": [8.0] * 9}, "timed 9 times, but a p90 needs at least 10 runs"),
    ],
)
def test_times_of_another_kind_settle_nothing(bundle: Make, device: Any, run: Any, why: str) -> None:

    folder = bundle(gate("latency", "unverified", 100.0))
    path = verdict(folder, device=device, **run)
    assert outcomes(judged(folder, path)) == {}
    with pytest.raises(VerificationError, match="has no measurement for any") as caught, settled_bundle(folder, path):
        pass
    assert why in caught.value.what


def test_a_limit_that_failed_or_is_no_number_stays_as_it_is(bundle: Make) -> None:
    folder = bundle(gate("latency", "failed", 100.0), gate("load", "unverified"), gate("device", "unverified"))
    path = verdict(folder)
    assert outcomes(judged(folder, path)) == {"device": "ok"}
    with (
        pytest.raises(
            VerificationError, match="has no measurement for latency, load; load: the manifest has no number"
        ),
        settled_bundle(folder, path),
    ):
        pass


@pytest.mark.parametrize("name", ["accuracy_drop", "int8_macs", "runtime", "size", "download", "parity", "outputs"])
def test_what_is_no_devices_to_say_is_never_settled(bundle: Make, name: str) -> None:
    folder = bundle(gate(name, "unverified", 1e12), gate("latency", "unverified", 100.0))
    path = verdict(folder)
    assert outcomes(judged(folder, path)) == {"latency": "ok"}
    with (
        pytest.raises(
            VerificationError, match=f"has no measurement for {name}; {name}: a device does not measure this gate"
        ),
        settled_bundle(folder, path),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out: -out, "-6.0 dB"),
        (lambda out: np.full_like(out, np.nan), "NaN or Inf"),
        (lambda out: np.repeat(out[:1], len(out), 0), "constant"),
        (lambda out: out[:2], "the device gave"),
        (lambda out: out.astype(np.float64), "the device gave"),
    ],
)
def test_other_outputs_fail_whatever_was_packaged(bundle: Make, change: Any, why: str) -> None:
    folder = bundle(gate("latency", "unverified", 100.0), gate("device", "ok"))
    path = verdict(folder, change(read_golden(read_bundle(folder)).outputs[0]))
    found = judged(folder, path)
    assert outcomes(found)["device"] == "failed"
    assert why in " ".join(one.detail + one.measured for one in found.failed)
    with pytest.raises(VerificationError, match="fails gates with the measurements of"), settled_bundle(folder, path):
        pass


def core_ml(make: Make, *gates: dict[str, Any]) -> Path:
    """Return a bundle as the Core ML target makes them: the graph's golden outputs, and nothing was run."""
    target = {"name": "ios-arm64-coreml", "platform": "ios", "arch": "arm64", "runtime": "executorch"}
    names = [gate(name, "unverified") for name in ("parity", "outputs")]
    return make(*names, *gates, target=target | {"backend": "coreml"}, golden={"made_by": "graph"}, scheme="fp16")


def test_a_macs_verdict_settles_core_mls_parity_and_outputs_and_no_phones_time(bundle: Make) -> None:
    folder = core_ml(bundle)
    path = verdict(folder, device=MAC)
    assert outcomes(judged(folder, path)) == {"parity": "ok", "outputs": "ok"}
    with settled_bundle(folder, path) as settled:
        assert read_bundle(settled.folder).manifest.accepted
    shutil.rmtree(folder)
    timed = core_ml(bundle, gate("latency", "unverified", 100.0))
    path = verdict(timed, device=MAC)
    with pytest.raises(VerificationError, match=r"no measurement for latency; .*macos"), settled_bundle(timed, path):
        pass


def test_a_mac_that_computes_something_else_fails_core_ml(bundle: Make) -> None:
    folder = core_ml(bundle)
    golden = read_golden(read_bundle(folder)).outputs[0]
    noise = np.random.default_rng(0).standard_normal(golden.shape).astype(golden.dtype) * np.abs(golden).max() / 50
    path = verdict(folder, golden + noise, device=MAC)
    assert outcomes(judged(folder, path))["parity"] == "failed"


def test_an_intel_mac_has_other_kernels(bundle: Make) -> None:
    folder = core_ml(bundle)
    path = verdict(folder, device=MAC | {"arch": "x86_64"})
    assert judged(folder, path).settled == {}
    with (
        pytest.raises(VerificationError, match=r"has no measurement for any.*its kernels differ"),
        settled_bundle(folder, path),
    ):
        pass


def test_another_bundles_verdict_another_runtimes_and_none_at_all(bundle: Make) -> None:
    folder = bundle(gate("latency", "unverified", 100.0))
    other = verdict(folder, runtime="torch 2.1.0")
    with pytest.raises(IntegrityError, match=r"measured in torch 2\.1\.0, but the bundle is for executorch"):
        judged(folder, other)
    path = verdict(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(canonical_json(manifest | {"labels": ["another"]}))
    with pytest.raises(IntegrityError, match="is the verdict for bundle"):
        judged(folder, path)
    for missing in (folder / "nothing.json", folder):
        with pytest.raises(UsageError, match="cannot read the verdict"):
            judged(folder, missing)


def test_of_several_bundles_each_is_settled_by_its_own_verdict(bundle: Make) -> None:
    folder = bundle(gate("latency", "unverified", 100.0))
    with settled_bundles((GOLDEN, folder), (verdict(folder),)) as (same, settled):
        assert (same.folder, same.told) == (GOLDEN, "")
        assert read_bundle(settled.folder).manifest.accepted
        assert settled.told == "latency: measured on Pixel 9 (adb), by its verdict"
    with settled_bundles((GOLDEN,), ()) as (same,):
        assert same.folder == GOLDEN
    with (
        pytest.raises(IntegrityError, match="not among the given bundles"),
        settled_bundles((GOLDEN,), (verdict(folder),)),
    ):
        pass


def test_of_two_verdicts_on_one_bundle_none_is_left_out_in_silence(bundle: Make) -> None:
    folder = bundle(gate("latency", "unverified", 8.5))
    slow = verdict(folder, latencies_ms=[20.0] * 50).rename(folder.parent / "slow.json")
    fast = verdict(folder, latencies_ms=[8.0] * 50)
    for both in ((slow, fast), (fast, slow)):
        with pytest.raises(UsageError, match=r"verdicts for one bundle"), settled_bundles((folder,), both):
            pass


def test_a_wrong_digest_stops_before_the_verdict(bundle: Make) -> None:
    folder = bundle(gate("latency", "unverified", 100.0))
    with pytest.raises(EdgeqError, match="expected"), settled_bundle(folder, verdict(folder), digest="0" * 64):
        pass
