"""The commands of adb, checked by a stub that runs what it was given here: no phone was at hand."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from boards import program

from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.report.progress import Quiet
from edgeq.verify.emulate.cpus import find_cpu, make_root, qemu_path
from edgeq.verify.emulate.install import DEFAULT_WHEELS, ensure_installed
from edgeq.verify.emulate.runner import Work, run_all
from edgeq.verify.remote.device import open_session
from edgeq.verify.remote.link import Adb, Ssh, parse_link

SELFTEST = Path(__file__).parents[4] / "edgeq" / "verify" / "emulate" / "selftest"

# a phone whose /data/local/tmp is a folder here, and whose loader runs under QEMU
STUB = r"""
[ "$1" = -s ] && [ "$2" = R3CN ] || { echo "adb: device '$2' not found" >&2; exit 1; }
shift 2
root={root}
printf '%s\n' "$1" >>{root}/../asked
case "$1" in
shell)
  [ "$2" = -T ] && [ $# = 3 ] || { echo "adb: wrong words: $*" >&2; exit 1; }
  export PATH={phone}:$PATH
  exec sh -c "$(printf '%s' "$3" | sed -e "s#/data/local/tmp#$root#g" -e 's#^\./system/ld#{qemu} ./system/ld#')" ;;
push)
  case "$2" in */.) ;; *) exit 1 ;; esac
  exec cp -r "$2" "$3" ;;
pull) exec cp "$2" "$3" ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for tool in ("qemu-aarch64", "aarch64-linux-gnu-g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    root, own = tmp_path / "data", tmp_path / "phone"
    root.mkdir()
    own.mkdir()
    cpu = find_cpu("cortex-a76")
    qemu = shlex.join([qemu_path(), "-cpu", cpu.name, "-L", str(make_root(cpu, tmp_path))])
    (own / "getprop").write_text(
        '#!/bin/sh\ncase "$1" in *release) echo 16;; *manufacturer) echo Google;; *model) echo "Pixel 9";; esac\n'
    )
    (own / "uname").write_text('#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo Linux\n')
    for name in ("getprop", "uname"):
        (own / name).chmod(0o755)
    script = STUB.replace("{root}", str(root)).replace("{phone}", str(own)).replace("{qemu}", qemu)
    program(tmp_path, "adb", script, monkeypatch)
    return root


def test_a_phone_takes_loader_libraries_and_runner_and_gives_the_hosts_outputs(phone: Path) -> None:
    with np.load(SELFTEST / "digits.npz") as arrays:
        inputs, expected = arrays["inputs"], arrays["outputs_pte"]
    runtime = ensure_installed(DEFAULT_WHEELS[0], Quiet())
    samples = tuple((row[None],) for row in inputs)
    work = Work(runtime=runtime, cpu=None, model=SELFTEST / "digits.pte", samples=samples, where="the phone")
    with open_session(Adb(serial="R3CN")) as session:
        assert (session.board.platform, session.board.arch, session.board.is_virtual) == ("android", "arm64", False)
        assert session.board.title == "Google Pixel 9 (adb:R3CN)"
        (ran,) = run_all((work,), timeout_s=120, launcher=session)
    assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), expected)
    assert "dot" in ran.core.features
    assert list(phone.iterdir()) == []
    asked = (phone.parent / "asked").read_text().split()
    assert asked == ["shell", "push", "shell", "pull", "pull"]


@pytest.mark.parametrize(
    ("said", "text", "fix"),
    [
        ("adb: no devices/emulators found", "adb finds no device", "adb devices"),
        ("adb: more than one device/emulator", "several devices", "--on adb:SERIAL"),
        ("error: device unauthorized.", "not authorized", "unlock the phone"),
        ("adb: device offline", "connection broke", "adb devices"),
        ("adb: device 'X' not found", "no device has this serial", "adb devices"),
        ("mktemp: Failed: No space left on device", "no space left", "free some"),
    ],
)
def test_what_adb_complains_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, text: str, fix: str) -> None:
    program(tmp_path, "adb", f"echo {shlex.quote(said)} >&2; exit 1\n", monkeypatch)
    with pytest.raises(EnvironmentProblem) as caught, open_session(Adb()):
        pass
    assert text in caught.value.what
    assert fix in caught.value.fix


def test_without_adb_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="adb is missing") as caught, open_session(Adb()):
        pass
    assert caught.value.fix == "apt-get install adb"


def test_what_on_names() -> None:
    assert parse_link("ssh:pi@board:2222") == Ssh(host="pi@board:2222")
    assert parse_link("adb") == Adb()
    assert parse_link("adb:R3CN") == Adb(serial="R3CN")
    for text in ("ssh:", "ssh", "adb:", "ssh:-oProxyCommand=x", "ssh:a b", "adb:$(x)"):
        with pytest.raises(UsageError, match="does not name a device"):
            parse_link(text)
