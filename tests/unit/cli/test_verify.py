"""`edgeq verify` and `edgeq inspect` as people and machines read them."""

from __future__ import annotations

import json
import shutil

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.cli.main import run
from edgeq.report.text import aligned, printable


def test_verify_prints_a_line_for_each_check_and_the_verdict(host_bundle, capfd):
    assert run(["verify", str(host_bundle), "--limit", "size=1MB", "-q"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    checks = ["files", "packaged", "run", "signature", "outputs", "golden", "size"]
    assert [line.split()[:2] for line in lines[1:8]] == [["ok", name] for name in checks]
    assert lines[-1] == "verdict: ok"
    assert err == ""


def test_verify_as_json_keeps_its_schema(host_bundle, net, capfd):
    options = ["--eval-data", f"{net}:evaluation", "--limit", "latency=100s", "--limit", "accuracy_drop=1pp"]
    options += ["--allow-unmeasured", "accuracy_drop"]
    assert run(["verify", str(host_bundle), *options, "--json", "-q"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == {
        "schema_version", "passed", "exit_code", "bundle", "digest", "model", "model_version", "target", "scheme",
        "host", "gates", "golden", "score", "timing", "emulation", "device", "peak_memory_bytes", "load_ms", "notes",
            "verdict_file",
    }  # fmt: skip
    assert document["schema_version"] == 1
    gates = {gate["name"]: gate for gate in document["gates"]}
    assert set(gates["golden"]) == {"name", "outcome", "limit", "measured", "detail", "exit_code", "passed", "bound"}
    assert gates["latency"]["limit"] == "<= 100000 ms"
    assert (gates["accuracy_drop"]["outcome"], gates["accuracy_drop"]["passed"]) == ("allowed", True)
    assert document["score"]["same_data"] is True


def test_verify_exits_with_the_gate_that_failed(host_bundle, capfd):
    assert run(["verify", str(host_bundle), "--limit", "size=1kB", "--limit", "accuracy_drop=1pp", "-q"]) == 4
    out = capfd.readouterr().out
    assert "\n  failed      size" in out
    assert "a bundle holds no fp32 model" in out
    assert out.endswith("verdict: failed: size, accuracy_drop (exit code 4)\n")


def test_tampering_is_told_without_a_traceback(host_bundle, tmp_path, capfd):
    folder = tmp_path / "bundle"
    shutil.copytree(host_bundle, folder)
    path = next(folder.glob("model.*"))
    path.write_bytes(path.read_bytes()[:-1])
    for command in ("verify", "inspect"):
        assert run([command, str(folder), "-q"]) == 8
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err


def test_a_bundle_that_was_written_anew_is_told_by_the_digest(host_bundle, tmp_path, capfd):
    digest = read_bundle(host_bundle).digest
    assert run(["verify", str(host_bundle), "--digest", digest.upper(), "-q"]) == 0
    folder = tmp_path / "bundle"
    shutil.copytree(host_bundle, folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    assert run(["verify", str(folder), "-q"]) == 0
    capfd.readouterr()
    app = tmp_path / "app"
    (app / "app" / "src" / "main").mkdir(parents=True)
    for argv in (["verify", str(folder), "-q"], ["install", str(folder), "--app", str(app)]):
        assert run([*argv, "--digest", digest]) == 8
        out, err = capfd.readouterr()
        assert out == ""
        assert f"expected {digest}" in err
        assert run([*argv, "--digest", digest[:12]]) == 2
        assert "64 hexadecimal digits" in capfd.readouterr().err
    assert not (app / "app" / "src" / "main" / "assets").exists()


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["verify", "gone"], "no bundle"),
        (["verify", "gone", "--limit", "sise=1MB"], "Did you mean 'size'"),
        (["verify", "gone", "--limit-on", "piont"], "Did you mean 'point'"),
        (["verify", "gone", "--allow-unmeasured", "sise"], "Did you mean 'size'"),
        (["verify", "gone", "--metric", "m.py:f"], "add --eval-data"),
        (["inspect", "gone"], "no such file or folder"),
        (["inspect", "."], "manifest.json"),
    ],
)
def test_bad_input(project, capfd, argv, what):
    assert run([*argv, "-q"]) == 2
    assert what in capfd.readouterr().err


def test_inspect_shows_a_bundle(host_bundle, capfd):
    assert run(["inspect", str(host_bundle), "--layers", "1"]) == 0
    out = capfd.readouterr().out
    for word in (
        "image, float32 [1, 1, 16, 16]",
        "static-int8",
        "int8 MACs",
        "undelegated",
        "kept in fp32",
        "accepted",
    ):
        assert word in out
    assert "the largest 1:" in out
    assert len(out.partition("layers: ")[2].splitlines()) == 3
    assert run(["inspect", str(host_bundle), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["schema_version"], document["kind"]) == (1, "bundle")
    assert document["manifest"]["model"]["name"] == "net"
    assert set(document["layers"][0]) == {"name", "op", "macs", "weight_bytes", "delegated", "of_activations"}


def test_inspect_shows_an_artifact(host_bundle, capfd):
    path = next(host_bundle.glob("model.*"))
    assert run(["inspect", str(path), "--layers", "2", "-q"]) == 0
    out = capfd.readouterr().out
    assert "not stated in a TorchScript archive" in out
    assert "the largest 2:" in out
    assert run(["inspect", str(path), "--json", "-q"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["kind"], document["inputs"], document["delegated_macs"]) == ("artifact", None, None)
    assert document["entries"]


def test_names_from_elsewhere_cannot_move_the_cursor():
    assert printable("a\x1b[2Jb\nc\x9b") == "a?[2Jb c?"
    assert aligned([("a", "bb"), ("\x1bcc", "d")], right=frozenset({1})) == ["  a    bb", "  ?cc   d"]
