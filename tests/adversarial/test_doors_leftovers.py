"""What a kill leaves behind is cleared away, and text from files cannot steer a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.cli.console import note, say, say_json
from edgeq.config.options import read_project
from edgeq.config.project_file import read_models
from edgeq.core.devices import load_device
from edgeq.core.errors import EdgeqError, Findings, UsageError
from edgeq.core.files import recover_dir, remove_dir
from edgeq.core.preprocess import load_preprocess
from edgeq.core.profiles import device_files, profile_files
from edgeq.core.schema import read_toml
from edgeq.core.targets import load_target
from edgeq.pipeline.fit_device import fit_device
from edgeq.report.ci import _escaped, _text
from edgeq.report.progress import Quiet

_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from edgeq.core.files import remove_dir
shutil.rmtree = lambda *_args, **_options: os.kill(os.getpid(), signal.SIGKILL)
remove_dir(Path(sys.argv[1]), below=Path(sys.argv[2]))
"""


def _folder(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("x")
    return path


def test_what_a_kill_inside_remove_dir_left_goes_with_the_next_run(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "models" / "net" / "target")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(tmp_path / "models")], check=False)
    assert killed.returncode == -9
    assert not folder.exists()
    assert len(list(folder.parent.iterdir())) == 1
    _folder(folder)
    remove_dir(folder, below=tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_leftover_of_an_older_edgeq_goes_too(tmp_path: Path) -> None:
    _folder(tmp_path / ".target.removed.tmp")
    _folder(tmp_path / ".another.removed.tmp")
    recover_dir(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == [".another.removed.tmp"]


def test_toml_that_is_nested_too_deeply_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 100_000 + "]" * 100_000)
    with pytest.raises(UsageError, match="nested too deeply"):
        read_toml(path)


_TOML = {
    "lists in lists": "a = " + "[" * 300 + "]" * 300,
    "lists in lists, far too many": "a = " + "[" * 100_000 + "]" * 100_000,
    "tables in tables": "a = " + "{a = " * 300 + "1" + "}" * 300,
    "a key of 3000 parts": ".".join("a" * 3000) + " = 1",
    "a limit of 2000 parts": f'[[model]]\nname = "a"\nsource = "b"\nlimit.{".".join("a" * 2000)} = 1',
    "a number of 5000 digits": "name = " + "1" * 5000,
    "a number that cannot be shown": "name = 0x" + "f" * 5000,
    "no number": "clock_ghz = nan\nwidth = inf\n[[measurement]]\nlatency_ms = nan",
    "a date": "name = 1979-05-27",
    "control characters": '"a\\nb\\u001b[2J" = 1',
    "an empty key": '"" = 1',
    "other types": 'name = 1\ndescription = []\ncore = {}\nwidth = "x"\nextends = ["x"]\nmodel = 3',
    "a null character": 'extends = "a\\u0000/b.toml"\ndevice = "a\\u0000.toml"',
}

_READERS: dict[str, Callable[[Path], object]] = {
    "target": lambda path: load_target(str(path)),
    "device": lambda path: load_device(str(path)),
    "preprocessing": lambda path: load_preprocess(str(path)),
    "project": read_project,
    "models": lambda path: read_models(path, ()),
    "measurements": lambda path: fit_device(path, Quiet()),
}


@pytest.mark.parametrize("reader", _READERS)
@pytest.mark.parametrize("kind", _TOML)
def test_toml_of_any_kind_is_bad_input_with_a_message(kind: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(_TOML[kind])
    with pytest.raises(EdgeqError) as caught:
        _READERS[reader](path)
    assert caught.value.exit_code == 2
    findings = caught.value.findings if isinstance(caught.value, Findings) else (caught.value,)
    assert all(len(one.what) < 1000 for one in findings)
    assert caught.value.what.count("; (") < 20


@pytest.mark.parametrize("kind", ["targets", "devices"])
def test_a_profile_without_any_one_of_its_keys_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    read, shipped = (load_target, profile_files()) if kind == "targets" else (load_device, device_files())
    codes = []
    for path in shipped.values():
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines):
            if "=" not in line and not line.startswith("["):
                continue
            cut = tmp_path / path.name
            cut.write_text("\n".join(lines[:i] + lines[i + 1 :]))
            try:
                read(str(cut))
            except EdgeqError as err:
                codes.append(err.exit_code)
    assert len(codes) > len(shipped)
    assert set(codes) == {2}


_EVIL = "a\x1b[2Jb\x9b31mc\x07d\u202ee\x7f"


def test_control_characters_do_not_reach_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{_EVIL}\nsecond line, caf\u00e9\u00a0\U0001f600")
    note(_EVIL)
    captured = capsys.readouterr()
    assert captured.out == "a?[2Jb?31mc?d?e?\nsecond line, caf\u00e9\u00a0\U0001f600\n"
    assert captured.err == "a?[2Jb?31mc?d?e?\n"


def test_json_escapes_them(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": _EVIL})
    out = capsys.readouterr().out
    assert all(char == "\n" or char.isprintable() for char in out)
    assert json.loads(out) == {"name": _EVIL}


@pytest.mark.parametrize("cleaned", [_text, _escaped])
def test_markdown_and_annotations_leave_them_out(cleaned) -> None:
    assert cleaned(_EVIL).isprintable()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
@pytest.mark.slow
def test_a_module_name_that_would_break_generated_code_is_refused(tmp_path: Path, name: str) -> None:
    code = f"""
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module({name!r}, torch.nn.Linear(4, 3))
    def forward(self, x):
        return getattr(self, {name!r})(x)
def model():
    return Net()
def example_inputs():
    return (torch.rand(1, 4),)
"""
    (tmp_path / "m.py").write_text(code)
    command = [
        "package",
        f"{tmp_path / 'm.py'}:model",
        "--target",
        "linux-x86_64-ort",
        "--scheme",
        "fp32",
        "--no-cache",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "edgeq", *command, "--out", str(tmp_path / "out")], capture_output=True, check=False
    )
    assert ran.returncode == 3
    assert b"rename it" in ran.stderr
