"""`edgeq profile` and `edgeq devices` as people run them, on the golden bundle of an earlier release."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeq.cli.main import app
from edgeq.core.errors import UsageError

GOLDEN = Path(__file__).parents[2] / "golden" / "0.1.0" / "digits"
BUNDLE = GOLDEN / "android-arm64-xnnpack"
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-g++") is None,
    reason="apt-get install qemu-user g++-aarch64-linux-gnu",
)


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_devices_are_listed():
    assert "raspberry-pi-4" in run("devices", "list").stdout
    listed = json.loads(run("devices", "list", "--json").stdout)["devices"]
    assert {"name", "core", "clock_ghz"} <= set(listed[0])


def test_a_device_is_shown_as_the_file_that_it_could_come_from(tmp_path):
    shown = run("devices", "show", "pixel-2").stdout
    path = tmp_path / "own.toml"
    path.write_text(shown)
    assert tomllib.loads(shown)["core"] == "cortex-a73"
    assert run("devices", "show", path).stdout == shown
    assert json.loads(run("devices", "show", path, "--json").stdout)["device"]["name"] == "pixel-2"


@pytest.fixture(scope="module")
def profiled():
    words = ["profile", BUNDLE, "--cpu", "cortex-a53,cortex-a72", "--json", "--quiet"]
    return json.loads(run(*words).stdout)


@needs_qemu
@pytest.mark.slow
def test_a_profile_has_counts_operators_and_predictions(profiled):
    first, second = profiled["cores"]
    assert [first["cpu"], second["cpu"]] == ["cortex-a53", "cortex-a72"]
    assert sum(part["instructions"] for part in first["operators"]) == first["instructions"]
    pi = next(one for one in second["predicted"] if one["device"] == "raspberry-pi-4")
    assert pi["threads"] == 2
    assert 0 < pi["low_ms"] < pi["estimate_ms"] < pi["high_ms"]
    assert pi["extrapolated"]


@needs_qemu
@pytest.mark.slow
def test_a_profile_for_people_names_the_dearest_operator_first(profiled):
    text = run("profile", BUNDLE, "--device", "raspberry-pi-4", "--top", "2", "--quiet").stdout
    dearest = max(profiled["cores"][1]["operators"], key=lambda part: part["instructions"])["name"]
    assert "raspberry-pi-4, predicted" in text
    assert "measured" not in text
    assert text.splitlines()[-2].endswith(dearest)


@needs_qemu
@pytest.mark.slow
def test_a_fit_moves_the_predictions_onto_the_measurements(tmp_path, profiled):
    estimate = next(one for one in profiled["cores"][1]["predicted"] if one["device"] == "raspberry-pi-4")
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    rows = [
        f'[[measurement]]\nbundle = "bundle"\nthreads = 2\nlatency_ms = {estimate["estimate_ms"] * factor}\n'
        for factor in (1.4, 1.6)
    ]
    measured = tmp_path / "measured.toml"
    measured.write_text('device = "raspberry-pi-4"\nname = "my-pi"\n' + "".join(rows))
    out = tmp_path / "my-pi.toml"
    text = run("devices", "fit", "--measurements", measured, "--out", out, "--quiet").stdout
    assert "this fit" in text
    fitted = tomllib.loads(out.read_text())
    assert fitted["fitted"]["correction"] == pytest.approx((1.4 * 1.6) ** 0.5, rel=1e-3)
    assert fitted["fitted"]["measurements"] == 2
    with pytest.raises(UsageError, match="already exists"):
        run("devices", "fit", "--measurements", measured, "--out", out, "--quiet")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("profile", GOLDEN), "no bundle"),
        (("profile", BUNDLE, "--device", "pixle"), "pixel"),
        (("profile", BUNDLE, "--device", "pixel", "--cpu", "cortex-a53"), "cortex-a72"),
        (("profile", BUNDLE, "--cpu", "cortex-a54"), "cortex-a5"),
        (("devices", "show", "raspberry"), "raspberry-pi"),
        (("devices", "fit", "--measurements", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_bad_input_names_what_is_wrong(words, says):
    with pytest.raises(UsageError, match=says):
        run(*words, *(["--quiet"] if words[0] == "profile" else []))


def test_measurements_with_an_unknown_key_are_refused(tmp_path):
    path = tmp_path / "measured.toml"
    path.write_text('device = "pixel"\n[[measurement]]\nbundle = "b"\nlatency = 3\n')
    with pytest.raises(UsageError, match="latency_ms"):
        run("devices", "fit", "--measurements", path)
