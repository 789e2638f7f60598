"""Over the air from the command line: a real bundle is released, followed, tested in its runtime, and withdrawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from tests.integration.conftest import Result, Run, command

X86, PHONE = "linux-x86_64-x86", "android-arm64-qnnpack"
DATA = ("--calibration-data", "calibration.npz", "--eval-data", "evaluation.npz")


@pytest.fixture
def shipped(edgeq: Run, package: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with one release of the quarters model, and keys; returns the bundle, which is packaged once."""
    bundle = Path("out/quarters") / X86
    kept = tmp_path_factory.getbasetemp() / "shipped-quarters"
    if kept.exists():
        shutil.copytree(kept, bundle)
    else:
        assert package().code == 0
        shutil.copytree(bundle, kept)
    assert edgeq("keys", "new", "keys").code == 0
    result = release(edgeq, bundle)
    assert result.code == 0, result.err
    return bundle


def release(edgeq: Run, *args: str | Path, channel: str = "channel") -> Result:
    return edgeq("ota", "release", *args, "--channel", channel, "--keys", "keys", "--quiet", "--json")


def tried(edgeq: Run, *args: str | Path) -> Result:
    """Release into a copy of the channel."""
    shutil.rmtree("copied", ignore_errors=True)
    shutil.copytree("channel", "copied")
    return release(edgeq, *args, channel="copied")


def update(edgeq: Run, *args: str) -> Result:
    trust = ("--trust", "channel/metadata/1.root.json")
    return edgeq("ota", "update", "--channel", "channel", "--store", "store", "--device-id", "d", *trust, *args)


def gates(result: Result) -> dict[str, str]:
    return {gate["name"]: gate["outcome"] for gate in result.json["rows"][0]["gates"]}


def changed(bundle: Path, **model: str) -> Path:
    """Return a copy of a bundle as another version: its manifest says so, its files are the same."""
    copy = bundle.parent / f"copy-{len(list(bundle.parent.iterdir()))}"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"].update(model or {"version": "2"})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.slow
def test_a_release_reaches_a_device_and_is_withdrawn(edgeq: Run, shipped: Path) -> None:
    first = update(edgeq, "--quiet")
    assert first.code == 0, first.err
    assert "installed: release 1 (version 1), full download" in first.out
    assert edgeq("ota", "start", "--store", "store").out.strip() == "store/slots/1"
    assert edgeq("ota", "healthy", "--store", "store").out.startswith("release 1, healthy")

    second = release(edgeq, changed(shipped), "--limit", "delta=20kB")
    assert second.code == 0, second.err
    (delta,) = second.json["rows"][0]["deltas"]
    assert delta["published"]
    assert delta["size_bytes"] < second.json["rows"][0]["download_bytes"] / 4
    assert "installed: release 2 (version 2), patch" in update(edgeq, "--quiet").out

    gone = edgeq("ota", "withdraw", "2", "--channel", "channel", "--keys", "keys")
    assert gone.code == 0, gone.err
    assert "release 3 (version 1), patch" in update(edgeq, "--quiet").out
    assert edgeq("ota", "rollback", "--store", "store").out.startswith("release 1, healthy")
    again = edgeq("ota", "refresh", "--channel", "channel", "--keys", "keys", "--valid-days", "40")
    assert again.out.startswith("signed again: channel, for 40 days"), again.err
    # release 3 is what release 1 was: there is nothing newer
    assert update(edgeq, "--quiet").out.startswith("up to date: release 1 (version 1)")


@pytest.mark.slow
def test_a_bundle_that_does_not_do_what_it_says_is_not_switched_to(edgeq: Run, shipped: Path) -> None:
    assert update(edgeq, "--quiet").code == 0
    broken = changed(shipped)
    artifact = next(broken.glob("model.*"))
    artifact.write_bytes(artifact.read_bytes()[:-2000] + bytes(2000))
    manifest = json.loads((broken / "manifest.json").read_text())
    from edgeq.core.files import sha256_file

    for entry in manifest["files"]:
        if entry["path"] == artifact.name:
            entry["sha256"] = sha256_file(artifact)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    assert release(edgeq, broken).code == 0  # the gates of a release do not run the model unless churn is asked for
    update(edgeq, "--quiet").fails(7, "release 2 failed its self-test (2 more tries)")
    assert edgeq("ota", "status", "--store", "store").out.startswith("release 1,")


@pytest.mark.slow
def test_gates_of_a_release(edgeq: Run, package: Run, shipped: Path) -> None:
    before = {path: path.read_bytes() for path in Path("channel").rglob("*") if path.is_file()}
    assert release(edgeq, shipped).code == 2  # it is released already
    second = changed(shipped)
    size = len(b"".join(path.read_bytes() for path in Path("channel/targets").glob("*.zip")))
    told = release(edgeq, second, "--limit", "download=1kB", "--limit", "delta=10B")
    assert told.code == 4
    assert {"download", "delta"} <= {name for name, outcome in gates(told).items() if outcome == "failed"}
    assert told.json["published"] is None
    assert gates(release(edgeq, second, "--runtime", "torchscript=2.1"))["runtime"] == "failed"
    release(edgeq, second, "--runtime", "torchscrip=2.1").fails(2, "none of the bundles runs on 'torchscrip'")
    release(edgeq, second, "--device", "my phone").fails(2, "invalid device id --device 'my phone'")
    release(edgeq, second, "--eval-data", "nodata").fails(2, "neither is given")
    other = changed(shipped, name="other")
    release(edgeq, second, "--delta-from", other).fails(2, "no bundle of this release is of other")
    assert release(edgeq, second, "--limit", "flips=2%").code == 7  # no evaluation set
    unmade = release(edgeq, second, "--limit", "delta=1MB", "--deltas", "0")
    assert (unmade.code, gates(unmade)["delta"]) == (7, "unverified")
    store = ("--store-limit", "play-base-module", "--app-size", "1MB")
    release(edgeq, second, *store).fails(2, "is for android, but the bundles are for linux")
    assert release(edgeq, second, "--limit", "latency=2ms").code == 2
    assert release(edgeq, changed(shipped, version="3", weights="random")).code == 7
    assert {path: path.read_bytes() for path in Path("channel").rglob("*") if path.is_file()} == before
    assert size > 1000


@pytest.mark.slow
def test_churn_against_the_shipped_model(edgeq: Run, package: Run, shipped: Path) -> None:
    data = ("--eval-data", "evaluation.npz")
    same = release(edgeq, changed(shipped), *data, "--limit", "flips=0%", "--limit", "class_drop=0pp")
    assert same.code == 0, same.out
    # a model whose first two outputs have changed places
    code = Path("quarters.py").read_text().replace("head.weight[quarter, 4", "head.weight[[1, 0, 2, 3][quarter], 4")
    Path("swapped.py").write_text(code)
    made = edgeq(
        *(
            "package",
            "swapped.py:model",
            "--target",
            X86,
            "--out",
            "out2",
            "--name",
            "quarters",
            "--model-version",
            "9",
        ),
        *("--calibration-data", "calibration.npz", "--no-cache", "--quiet"),
    )
    assert made.code == 0, made.err
    told = release(edgeq, Path("out2/quarters") / X86, *data, "--limit", "flips=2%", "--limit", "class_drop=1pp")
    assert told.code == 5
    found = {gate["name"]: gate for gate in told.json["rows"][0]["gates"]}
    assert found["flips"]["measured"] == "50.00%"
    assert found["class_drop"]["measured"] == "100.00 pp"
    assert "25 right of 25 before, 0 now" in found["class_drop"]["detail"]


TUNED = """
import torch

import quarters


def model():
    module = quarters.model()
    torch.manual_seed(1)
    with torch.no_grad():
        for part in module.parameters():
            part += 2e-3 * part.abs().mean() * torch.randn_like(part)
    return module


example_inputs = quarters.example_inputs
"""


@pytest.mark.slow
def test_a_tuned_model_that_reuses_the_shipped_one_is_a_smaller_patch(edgeq: Run, package: Run, shipped: Path) -> None:
    Path("tuned.py").write_text(TUNED)
    sizes = {}
    for how, options in (("with", ("--reuse-qparams-from", shipped)), ("without", ())):
        named = ("--name", "quarters", "--model-version", "2", "--out", how)
        made = package("tuned.py:model", "--target", X86, *DATA, *named, *options, "--json", base=False)
        assert made.code == 0, made.err
        row = made.json["rows"][0]
        # both ways to name the base: the channel has it, and the folder is told
        told = tried(edgeq, Path(how) / "quarters" / X86, "--delta-from", shipped)
        assert told.code == 0, told.err
        (delta,) = told.json["rows"][0]["deltas"]
        sizes[how] = delta["size_bytes"]
        reuse = told.json["rows"][0]["reuse"]
        assert (reuse is None) == (how == "without")
        if reuse is not None:
            assert reuse["found"]["patch_bytes"] < reuse["found"]["patch_bytes_without"]
            assert row["reuse"]["kept"]["samples"] == 64
            assert row["reuse"]["kept"]["layers"] == 2
    assert sizes["with"] < sizes["without"]
    published = release(edgeq, Path("with/quarters") / X86, "--delta-from", shipped)
    assert published.code == 0, published.err
    assert update(edgeq, "--quiet").code == 0
    assert edgeq("ota", "status", "--store", "store").out.startswith("release 2,")


def test_another_contract_is_refused(edgeq: Run, shipped: Path) -> None:
    other = changed(shipped)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["labels"] = ["a", "b", "c", "d"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    told = release(edgeq, other)
    assert told.code == 3
    assert gates(told)["contract"] == "failed"


@pytest.mark.slow
def test_limits_of_the_very_files_to_the_byte(edgeq: Run, shipped: Path) -> None:
    """One byte less than the file is refused with nothing written, exactly so many pass, and one more too."""
    second = changed(shipped)
    told = tried(edgeq, second).json["rows"][0]
    sizes = {"download": told["download_bytes"], "delta": told["deltas"][0]["size_bytes"]}
    for name, size in sizes.items():
        for over, code in ((-1, 4), (0, 0), (1, 0)):
            assert tried(edgeq, second, "--limit", f"{name}={size + over}B").code == code, (name, over)


def test_errors_of_the_command_line(edgeq: Run, shipped: Path) -> None:
    edgeq("ota", "update", "--channel", "channel", "--store", "s2", "--device-id", "d").fails(
        8, "has no trusted root yet"
    )
    assert not Path("s2").exists()
    edgeq("ota", "update", "--channel", "none", "--store", "s2", "--device-id", "d").fails(2, "no such folder")
    edgeq("ota", "start", "--store", "s2").fails(2, "is not a store")
    edgeq("ota", "withdraw", "7", "--channel", "channel", "--keys", "keys").fails(2, "no release 7")
    edgeq("ota", "withdraw", "1", "--channel", "channel", "--keys", "keys").fails(2, "is the channel's first")
    edgeq("keys", "new", "keys").fails(2, "has keys already")
    edgeq("keys", "rotate", "keys", "--role", "rooot", "--channel", "channel").fails(2, "Did you mean 'root'")
    rotated = edgeq("keys", "rotate", "keys", "--role", "targets", "--channel", "channel")
    assert "root version 2" in rotated.out
    assert "targets-2.pem" in rotated.out
    assert edgeq("keys", "show", "keys", "--json").json["roles"]["targets"]["threshold"] == 1
    edgeq("package", "quarters.py:model", "--target", X86, "--limit", "delta=1MB").fails(2, "when a bundle is released")


@pytest.mark.slow
def test_what_a_phone_measured_lets_a_rejected_bundle_reach_a_device(edgeq: Run, package: Run) -> None:
    assert package(*command(target=PHONE), "--limit", "latency=40ms", base=False).code == 7
    rejected = Path("out/rejected/quarters") / PHONE
    assert edgeq("verify", rejected, "--write-verdict", "v.json", "--quiet").code == 7
    measured = json.loads(Path("v.json").read_text())
    phone = {"name": "Pixel 9", "platform": "android", "os": "Android 16", "arch": "arm64"}
    for slow, code in ((50.0, 6), (12.0, 0)):
        run = measured["run"] | {"latencies_ms": [slow] * 30}
        Path("v.json").write_text(json.dumps(measured | {"device": measured["device"] | phone, "run": run}))
        assert edgeq("verify", rejected, "--verdict", "v.json", "--quiet").code == code

    assert edgeq("keys", "new", "keys").code == 0
    publish = ("ota", "release", rejected, "--channel", "channel", "--keys", "keys", "--quiet")
    edgeq(*publish).fails(7, "did not pass its gates: latency", "or give --verdict FILE")
    assert not Path("channel").exists()
    done = edgeq(*publish, "--verdict", "v.json")
    assert done.code == 0, done.err
    assert "latency: measured on Pixel 9, by its verdict: digest " in done.out
    assert "published: release 1 in channel" in done.out

    told = update(edgeq, "--quiet")
    assert told.code == 0, told.err
    assert "installed: release 1 (version 1), full download" in told.out
    place = Path(edgeq("ota", "start", "--store", "store").out.strip())
    assert f"digest {read_bundle(place).digest[:12]}" in done.out
    assert read_bundle(place).digest != read_bundle(rejected).digest
    assert edgeq("verify", place, "--quiet").code == 0
    assert edgeq("ota", "healthy", "--store", "store").out.startswith("release 1, healthy")
    again = edgeq(*publish, "--verdict", "v.json")
    again.fails(2, "is already release 1")


@pytest.mark.slow
def test_one_release_has_one_digest(edgeq: Run, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short share of `scripts/fault builds`; what has expired by now is only written where that is asked for."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    told = edgeq("ota", "release", shipped, "--channel", "a", "--keys", "keys", "--quiet")
    told.fails(2, "signed as of 2023-11-14 (SOURCE_DATE_EPOCH), the index would have expired on 2023-12-14")
    edgeq("ota", "refresh", "--channel", "channel", "--keys", "keys").fails(2, "would have expired")
    edgeq("keys", "rotate", "keys", "--role", "targets", "--channel", "channel").fails(2, "would have expired")
    assert not Path("a/metadata").exists()
    trees = []
    for name in ("a", "b"):
        done = edgeq("ota", "release", shipped, "--channel", name, "--keys", "keys", "--quiet", "--allow-expired")
        assert done.code == 0, done.err
        assert f"published: release 1 in {name}, valid until 2023-12-14 22:13 UTC" in done.out
        trees.append({path.relative_to(name): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()})
    assert trees[0] == trees[1]
    assert any(path.name.endswith(".cdx.json") for path in trees[0])
