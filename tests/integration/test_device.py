"""Real devices as a user meets them: a board by ssh, which is this host, and what is measured there settles here."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest
from boards import Server, client, left

from edgeq.bundle.reader import read_bundle

from .conftest import XNNPACK, Project, Run

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "digits"
HOST_XNNPACK = "linux-x86_64-xnnpack"
ALLOW = ("--allow-unmeasured", "runtime", "--allow-unmeasured", "int8_macs")


@pytest.fixture
def bundle(project: Project, runtimes: Path, edgeq: Run) -> Path:
    """A bundle for the board: the digits' program, packaged for this very kind of host."""
    if platform.machine() != "x86_64":
        pytest.skip("the target is for x86_64")
    shutil.copy(GOLDEN / XNNPACK / "model.pte", project.root / "digits.pte")
    result = edgeq("package", "digits.pte", "-t", HOST_XNNPACK, "-o", "out", *ALLOW, "-q")
    assert result.code == 0, result.err
    return project.out / "digits" / HOST_XNNPACK


def test_a_board_is_measured_and_its_verdict_counts_elsewhere(board: Server, bundle: Path, edgeq: Run) -> None:
    on = ("--on", f"ssh:{board.host}")
    result = edgeq("verify", bundle, *on, "--limit", "latency=100s", "--write-verdict", "farm/v.json", "--json", "-q")
    assert result.code == 0, result.err
    assert "verdict written: farm/v.json" in result.err
    assert left(board) == []
    told = result.json
    assert (told["device"]["platform"], told["device"]["arch"], told["device"]["runs"]) == ("linux", "x86_64", 50)
    assert board.host in told["device"]["device"]
    gates = {gate["name"]: gate for gate in told["gates"]}
    assert gates["device"]["measured"] == "equal"
    assert f"ssh:{board.host}" in gates["latency"]["detail"]

    written = json.loads(Path("farm/v.json").read_bytes())
    assert written["bundle"] == told["digest"]
    assert len(written["run"]["latencies_ms"]) == 50
    assert not {"ok", "outcome", "passed", "gates"} & set(written)

    given = ("--verdict", "farm/v.json", "-q")
    there = edgeq("verify", bundle, *given, "--limit", "latency=100s", "--json")
    assert there.code == 0, there.err
    assert there.json["device"]["p90_ms"] == told["device"]["p90_ms"]
    assert {gate["name"]: gate["outcome"] for gate in there.json["gates"]}["device"] == "ok"
    assert edgeq("verify", bundle, *given, "--limit", "latency=0.001us").code == 6

    Path("farm/v.json").write_text(json.dumps(written | {"bundle": "0" * 64}))
    edgeq("verify", bundle, *given).fails(8, "is the verdict for bundle 000000", "--write-verdict")


def test_a_board_that_refuses_or_is_another_kind(
    board: Server, bundle: Path, edgeq: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = ("--on", f"ssh:{board.host}", "-q")
    edgeq("verify", GOLDEN / XNNPACK, *on).fails(9, "needs arm64", "is x86_64")
    client(board, project.temporary, monkeypatch, key="stranger")
    edgeq("verify", bundle, *on).fails(9, "refused the authentication", "ssh-copy-id")
    client(board, project.temporary, monkeypatch, known=False)
    edgeq("verify", bundle, *on).fails(9, "host key is unknown")
    edgeq("verify", bundle, "--on", "ssh:127.0.0.1:1", "-q").fails(9, "cannot be reached")


def test_this_hosts_own_verdict_settles_a_bundle_that_was_rejected_for_want_of_it(
    bundle: Path, project: Project, edgeq: Run
) -> None:
    phone = ("package", "digits.pte", "-t", XNNPACK, "-o", "phone", "--on", "host", *ALLOW, "-q")
    assert edgeq(*phone, "--limit", "latency=40ms").code == 7
    rejected = project.root / "phone" / "rejected" / "digits" / XNNPACK
    (project.root / "app" / "app" / "src" / "main").mkdir(parents=True)
    (project.root / "app" / "settings.gradle.kts").write_text('include(":app")')
    (project.root / "app" / "app" / "build.gradle.kts").write_text('plugins { id("com.android.application") }')
    assert edgeq("verify", rejected, "--write-verdict", "v.json", "-q").code == 7
    install = ("install", rejected, "--app", "app", "--verdict", "v.json")
    edgeq(*install).fails(7, "has no measurement for any unverified gate", "which is linux x86_64")

    phones = json.loads(Path("v.json").read_bytes())
    phones["device"] |= {"name": "Pixel 9", "platform": "android", "os": "Android 16", "arch": "arm64"}
    Path("v.json").write_text(json.dumps(phones | {"run": phones["run"] | {"latencies_ms": [50.0] * 50}}))
    assert edgeq("verify", rejected, "--verdict", "v.json", "-q").code == 6
    edgeq(*install).fails(7, "latency 50.00 ms (<= 40.00 ms)")
    Path("v.json").write_text(json.dumps(phones | {"run": phones["run"] | {"latencies_ms": [12.0] * 50}}))
    assert edgeq("verify", rejected, "--verdict", "v.json", "-q").code == 0
    done = edgeq(*install)
    assert done.code == 0, done.err
    assert "latency: measured on Pixel 9, by its verdict" in done.out
    place = project.root / "app" / "app" / "src" / "main" / "assets" / "models" / "digits" / XNNPACK
    assert read_bundle(place).manifest.accepted
    assert edgeq("verify", place, "-q").code == 0

    release = ("ota", "release", rejected, "--channel", "channel", "--keys", "keys", "-q")
    assert edgeq("keys", "new", "keys").code == 0
    edgeq(*release).fails(7, "did not pass its gates")
    judged = edgeq(*release, "--verdict", "v.json", "--json").json["rows"][0]["gates"]
    # the release's own gates follow: who wrote a .pte that came as it is nobody knows
    assert [(gate["name"], gate["outcome"]) for gate in judged] == [("runtime", "unverified"), ("contract", "ok")]
    other = edgeq("ota", "release", bundle, "--channel", "channel", "--keys", "keys", "--verdict", "v.json", "-q")
    other.fails(8, "v.json is the verdict for bundle", "not among the given bundles")


def test_options_that_measure_twice_or_nothing(bundle: Path, edgeq: Run) -> None:
    edgeq("verify", bundle, "--verdict", "v.json", "--on", "adb").fails(2, "cannot be combined with --on adb")
    edgeq("verify", bundle, "--verdict", "v.json", "--write-verdict", "w.json").fails(
        2, "combined with --write-verdict"
    )
    edgeq("verify", bundle, "--write-verdict", "v.json", "--on", "emulator").fails(2, "not meaningful")
    edgeq("verify", bundle, "--verdict", "nothing.json").fails(2, "cannot read the verdict nothing.json")
