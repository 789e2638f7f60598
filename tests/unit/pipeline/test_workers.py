"""What the process that a project's workers are forked from imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.core.targets import TargetProfile, load_target
from edgeq.pipeline.workers import EXPORT, TORCHVISION, imports_of

X86, ORT = load_target("linux-x86_64-x86"), load_target("linux-x86_64-ort")


@pytest.mark.parametrize(
    ("sources", "targets", "expected"),
    [
        (["plain.py:model"], [X86], ("torch",)),
        (["plain.py:model", "resnet.py:model"], [X86], ("torch", TORCHVISION)),
        (["torchvision:resnet18"], [X86], ("torch", TORCHVISION)),
        (["plain.py:model"], [X86, ORT], ("torch", *EXPORT)),
        (["package.module:model"], [X86], ("torch",)),
        (["gone.py:model", "weights.pt2"], [X86], ("torch",)),
    ],
)
def test_a_project_imports_what_its_targets_and_sources_need(
    sources: list[str], targets: list[TargetProfile], expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "plain.py").write_text("import torch\n")
    (tmp_path / "resnet.py").write_text("from torchvision.models import resnet18 as model\n")
    assert imports_of(sources, targets, tmp_path) == expected


@pytest.mark.slow
def test_processes_fork_from_one_that_has_imported_what_any_of_them_needs(tmp_path: Path) -> None:
    """In a process of its own, since there is one such server for all tests of this one."""
    script = tmp_path / "forks.py"
    script.write_text("""
import sys
from edgeq.pipeline.workers import fork_server

def held(names):
    return [name in sys.modules for name in names]

if __name__ == "__main__":
    for imports in (["colorsys"], ["wave"], ["colorsys"]):
        with fork_server(imports).Pool(1) as pool:
            print(pool.apply_async(held, (["colorsys", "wave"],)).get(60), flush=True)
""")
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert found.stdout.splitlines() == ["[True, False]", "[True, True]", "[True, True]"], found.stderr


def test_the_process_that_workers_are_forked_from_ends_at_once_and_its_forks_keep_their_exit_codes() -> None:
    script = """
import multiprocessing.forkserver  # as the line that starts it says
import atexit, os
atexit.register(print, "taken apart", flush=True)  # which a fork comes to, and the server itself does not
import edgeq.pipeline.workers
if os.fork() == 0:
    atexit._run_exitfuncs()  # as multiprocessing does
    os._exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["taken", "apart", "3"]
