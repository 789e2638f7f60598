"""Device profiles: the shipped ones, and what is wrong with a user's own."""

from __future__ import annotations

import pytest

from edgeq.core.devices import devices_with_core, load_device
from edgeq.core.errors import UsageError
from edgeq.core.profiles import device_files
from edgeq.core.results.measured import Counts
from edgeq.verify.emulate.counting import countable_cores

OWN = """
name = "board"
description = "a board"
core = "cortex-a72"
width = 3
clock_ghz = 1.8
cores = 2
sources = ["the vendor's data sheet"]
"""


@pytest.mark.parametrize("name", device_files())
def test_every_shipped_device_loads_names_its_sources_and_can_be_counted(name):
    device = load_device(name)
    assert device.name == name
    assert device.sources
    assert device.core in countable_cores()
    assert device.predict(Counts(scalar=10**8), 1).estimate_ms > 0
    assert name in devices_with_core(device.core)


def test_an_unknown_device_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="raspberry-pi-4"):
        load_device("raspberry-pi4")


def test_an_own_device_loads_from_its_file(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(OWN)
    assert load_device(str(path)).clock_ghz == 1.8
    with pytest.raises(UsageError, match="no device file"):
        load_device(str(tmp_path / "other.toml"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("clokc_ghz = 2.0", "clock_ghz"),
        ("width = 0", "width"),
        ('sources = ["x"]\n[fitted]\ncorrection = -1.0\nspread = 0.1\nmeasurements = 3', "correction"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, line, says):
    path = tmp_path / "board.toml"
    key = line.partition(" ")[0]
    path.write_text("\n".join(kept for kept in OWN.splitlines() if not kept.startswith(f"{key} =")) + f"\n{line}\n")
    with pytest.raises(UsageError, match=says):
        load_device(str(path))


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UsageError, match="2 cores"):
        load_device("pixel").predict(Counts(scalar=1), 4)


def test_a_fit_corrects_the_estimate_and_its_interval(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(OWN + "\n[fitted]\ncorrection = 1.5\nspread = 0.05\nmeasurements = 6\n")
    plain, fitted = tmp_path / "plain.toml", load_device(str(path))
    plain.write_text(OWN)
    counts = Counts(scalar=10**8)
    before, after = load_device(str(plain)).predict(counts, 1), fitted.predict(counts, 1)
    assert after.estimate_ms == pytest.approx(1.5 * before.estimate_ms)
    assert after.high_ms / after.estimate_ms < before.high_ms / before.estimate_ms
