"""The examples, and the code in docs/api.md, do what they say when they are run as they stand."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import Project

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
X86 = "linux-x86_64-x86"


@pytest.fixture
def run_here(project: Project, capfd: pytest.CaptureFixture[str]) -> Callable[[str | Path], str]:
    """Run a script in this process, where torch is imported once for all tests, and return what it prints."""

    def call(script: str | Path) -> str:
        capfd.readouterr()
        runpy.run_path(str(script), run_name="__main__")
        return capfd.readouterr().out

    return call


def run(*command: str | Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_docs_api(project: Project, run_here: Callable[[str | Path], str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL)
    Path("blocks.py").write_text("\n".join(blocks))
    assert "dB alone in int8" in run_here("blocks.py")
    assert read_bundle(project.out / "classifier" / f"{X86}@static-int8").manifest.scheme == "static-int8"
    assert (project.out / "rejected" / "too-big" / X86).is_dir()


README_NAMES = """\
import torch
from torch import nn

torch.manual_seed(0)
layers = [nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
net = nn.Sequential(*layers).eval()
train_images, val_images = torch.rand(2, 32, 3, 224, 224)
val_loader = [(image[None], int(net(image[None]).argmax())) for image in val_images]
"""


def test_readme(project: Project, run_here: Callable[[str | Path], str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    block, _, told = block.partition("report.raise_if_failed()")
    assert "GateFailed" in told
    Path("block.py").write_text(README_NAMES + block)
    ran = run_here("block.py").split()
    assert Path(ran[2]).suffix == ".pt"


def test_torchvision_classifier(project: Project) -> None:
    told = run(sys.executable, EXAMPLES / "torchvision_classifier.py").splitlines()
    assert [line.split(":")[0] for line in told] == [f"{X86}@static-int8", f"{X86}@fp32"]
    assert read_bundle(project.out / "shufflenet_v2_x0_5" / f"{X86}@static-int8").manifest.scheme == "static-int8"


def test_segmentation_metric(project: Project, run_here: Callable[[str | Path], str]) -> None:
    told = run_here(EXAMPLES / "segmentation_metric.py")
    found = re.fullmatch(r"mean IoU: ([\d.]+) in int8, ([\d.]+) in float\n", told)
    assert found is not None
    assert min(float(found[1]), float(found[2])) > 0.9
    assert read_bundle(project.out / "segmenter" / X86).manifest.accuracy.metric == "mean_iou"


def test_project_by_the_command_line_and_from_a_script_without_a_main_guard(project: Project) -> None:
    shutil.copytree(EXAMPLES / "project", "project")
    os.chdir("project")
    run("edgeq", "build", "--quiet", "--no-cache")
    digests = {name: read_bundle(Path("out") / name / X86).digest for name in ("edges", "scores")}
    shutil.rmtree("out")
    Path("script.py").write_text(
        "import edgeq, os\n"
        "print('pid', os.getpid())\n"
        "report = edgeq.build(progress=False)\n"
        "report.raise_if_failed()\n"
        f"print(report['edges']['{X86}'].digest, report['scores']['{X86}'].digest)\n"
    )
    told = run(sys.executable, "script.py").splitlines()
    assert len(told) == 2  # a worker that ran the script again would print its own
    assert told[1].split() == [digests["edges"], digests["scores"]]


def test_ota_channel(project: Project) -> None:
    assert run(EXAMPLES / "ota_channel.sh").rstrip().endswith("store/slots/2")
    assert read_bundle(project.root / "store" / "slots" / "2").manifest.model.version == "2"


def test_notebook(project: Project) -> None:
    import nbclient  # they take 2 s, in every worker that collects
    import nbformat

    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()  # a cell that raises ends it
    outputs = [cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"]
    assert len(outputs) == 6
    package, _, verify, compare, inspect = outputs[1:]
    for progress, table in (package, verify, compare):
        # one line, which changed while the cell ran
        assert progress["output_type"] == "display_data"
        assert re.fullmatch(r"took \d+ s", progress["data"]["text/plain"])
        assert table["data"]["text/html"].endswith("</table>")
    assert "residual.2</td>" in inspect[0]["data"]["text/html"]
    shown = package[1]["data"]
    assert re.findall(rf">{X86}</td><td[^>]*>([^<]+)<", shown["text/html"]) == ["fp32", "static-int8"]
    assert re.search(r">99\.\d\d%, drop -?\d\.\d\d pp<", shown["text/html"])
    assert f'<a href="out/digits/{X86}%40fp32/report.html">' in shown["text/html"]
    assert shown["text/plain"] == f"<RunReport {X86}@fp32 ok, {X86}@static-int8 ok>"
    assert "argmax agreement" in compare[1]["data"]["text/html"]
