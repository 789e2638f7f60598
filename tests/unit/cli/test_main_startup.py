"""Starting is cheap: no heavy library for help, for the list of targets, or for a key press."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = (
    "torch",
    "torchvision",
    "executorch",
    "numpy",
    "rich",
    "pydantic",
    "PIL",
    "edgeq.core.results.model",
    "edgeq.core.results.report",
    "edgeq.core.system",
    "edgeq.report",
)
PROBE = f"""
import sys
from edgeq.cli.main import run
try:
    run(sys.argv[1:])
except SystemExit:
    pass
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


def probe(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, env=environment, check=True
    )


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["targets", "list"], ["package", "--help"], ["-h"]])
def test_nothing_heavy_is_loaded(argv):
    assert probe(*argv).stderr.splitlines()[-1] == "[]"


def test_a_device_that_follows_a_channel_loads_only_what_that_needs():
    """What runs a new release is loaded when one has come."""
    code = "import sys, edgeq.cli.ota_device, edgeq.deliver.ota.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in done.stdout.split() if name.startswith("edgeq.")}
    assert rooms == {"bundle", "cli", "core", "deliver"}


def test_help_and_targets_list_are_quick():
    """By processor time, the best of three: other work shares the machine."""

    def processor() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    def seconds(*argv: str) -> float:
        before = processor()
        subprocess.run(
            [sys.executable, "-m", "edgeq", *argv],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return processor() - before

    assert min(seconds("--help") for _ in range(3)) <= 0.5
    assert min(seconds("targets", "list") for _ in range(3)) <= 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "edgeq package --target andr",
            [f"android-arm64-{backend}" for backend in ("litert", "ort", "qnn-htp", "qnnpack", "vulkan", "xnnpack")],
        ),
        ("edgeq package -t ios-arm64-xnnpack -t linux-x86_64-f", ["linux-x86_64-fbgemm", "linux-x86_64-fastest"]),
        ("edgeq package --scheme s", ["storage-fp16", "static-int8", "static-a16w8"]),
        ("edgeq package --observer p", ["percentile"]),
        ("edgeq package --limit l", ["latency=", "load="]),
        ("edgeq targets show ios-arm64-x", ["ios-arm64-xnnpack"]),
        ("edgeq tar", ["targets"]),
        ("edgeq package --num", ["--num-calibration-samples", "--num-search-samples"]),
    ],
)
def test_completion_by_name_loads_nothing_heavy(words, expected):
    position = str(len(words.split()) - 1)
    done = probe(_EDGEQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
    assert done.stdout.split() == expected
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_completion_script_is_printed(edgeq):
    done = edgeq("--show-completion", "bash", SHELL="/bin/bash")
    assert "_EDGEQ_COMPLETE=complete_bash" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_is_installed(edgeq, tmp_path):
    done = edgeq("--install-completion", "bash", SHELL="/bin/bash", HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "_EDGEQ_COMPLETE=complete_bash" in (tmp_path / ".bash_completions/edgeq.sh").read_text()
