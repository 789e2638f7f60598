"""What names, files and headers tell is found before anything runs, and all of it at once."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeq.core.config import DataConfig, GateOptions, Job
from edgeq.core.errors import EdgeqError, ExitCode, Findings, UsageError, VerificationError
from edgeq.core.targets import TargetGroup, load_target, load_target_or_group
from edgeq.pipeline.plan import plan_text
from edgeq.pipeline.preflight import check_source, left_out_candidates, preflight

TARGET = load_target("linux-x86_64-xnnpack")

FACTORY = "import torch\n\ndef model():\n    return torch.nn.Linear(4, 2)\n\nmake = model\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORY)


def found(job: Job) -> list[str]:
    with pytest.raises(EdgeqError) as caught:
        preflight(job)
    return [one.what for one in (caught.value.findings if isinstance(caught.value, Findings) else (caught.value,))]


def test_all_findings_are_shown_at_once() -> None:
    job = Job(
        source="torchvision:resnet1",
        targets=(TARGET,),
        schemes=("static-int8",),
        weights="gone.pt",
        model_version="a b",
        data=DataConfig(evaluation="gone.npz"),
    )
    told = found(job)
    assert [text.partition(":")[0] for text in told] == [
        "torchvision has no model 'resnet1'. Did you mean 'resnet18'?",
        "--model-version 'a b'",
        "int8 ranges need real samples, but no calibration data was given",
        "--weights",
        "--eval-data",
    ]


def test_every_model_that_torchvision_has_is_known_without_importing_it() -> None:
    from torchvision.models import list_models

    for name in list_models():
        check_source(f"torchvision:{name.replace('quantized_', 'quantization.')}")


@pytest.mark.parametrize("source", ["net.py:model", "net.py:make", "net.py:torch", "torchvision:resnet18", "digits"])
def test_what_is_there_is_accepted(source: str) -> None:
    check_source(source)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("net.py:modle", "MODEL: no 'modle' in net.py. Did you mean 'model'?"),
        ("torchvision:mobilenet_v4", "torchvision has no model 'mobilenet_v4'. Did you mean 'mobilenet_v2'?"),
        ("timm:resnet1000", "timm has no model 'resnet1000'"),
    ],
)
def test_a_wrong_name_is_found_without_torch(source: str, what: str) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    code = (
        "import sys\nfrom edgeq.pipeline.preflight import check_source\n"
        f"try:\n    check_source({source!r})\nexcept Exception as err:\n    print(err.what)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(what)
    assert done.stdout.splitlines()[-1] == "False"


def test_names_that_a_file_computes_are_left_to_its_import() -> None:
    for text in (
        "from torch.nn import *",
        "globals()['late'] = print",
        "vars()['late'] = print",
        "for size in (1, 2): exec(f'def late{size}(): ...')",
        "import sys\nsetattr(sys.modules[__name__], 'late', print)",
        "import sys\nsys.modules[__name__].__dict__['late'] = print",
        "def __getattr__(name): ...",
        "def broken(:",
    ):
        Path("net.py").write_text(text)
        check_source("net.py:late")


def test_a_wrong_name_is_told_at_once_beside_a_nets_modules() -> None:
    Path("net.py").write_text("def later(net):\n    modules = [*net.modules()]\n    return modules\n")
    with pytest.raises(UsageError, match="later"):
        check_source("net.py:late")


@pytest.mark.parametrize(("allowed", "code"), [((), ExitCode.VERIFICATION), (("accuracy_drop",), ExitCode.OK)])
def test_a_drop_without_data_is_refused_at_once(allowed: tuple[str, ...], code: ExitCode) -> None:
    gates = GateOptions(limits=(("accuracy_drop", 1.0),), allow_unmeasured=allowed)
    job = Job(source="net.py:model", targets=(TARGET,), schemes=("fp32",), inputs=("1x4",), gates=gates)
    if code:
        with pytest.raises(VerificationError, match="there is no evaluation data"):
            preflight(job)
    else:
        preflight(job)
    preflight(dataclasses.replace(job, source="digits", gates=GateOptions(limits=(("accuracy_drop", 1.0),))))


def test_a_whole_pickled_module_is_told_from_weights() -> None:
    torch.save(torch.nn.Linear(4, 2), "full_model.pt")
    torch.save(torch.nn.Linear(4, 2).state_dict(), "weights.pt")
    with pytest.raises(UsageError, match=r"holds a whole pickled module \(torch.nn.modules.linear.Linear\)") as caught:
        check_source("full_model.pt")
    assert "give --weights full_model_weights.pt" in caught.value.fix
    with pytest.raises(UsageError, match="holds only weights, without a model"):
        check_source("weights.pt")


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else spec(name, *rest))


def test_a_candidate_without_its_packages_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    group = load_target_or_group("linux-x86_64-fastest")
    assert isinstance(group, TargetGroup)
    job = Job(source="net.py:model", groups=(group,), schemes=("fp32",), inputs=("1x4",))
    without(monkeypatch, "openvino")
    ((name, error),) = left_out_candidates(job, group, "fp32").items()
    assert (name, error.exit_code) == ("linux-x86_64-openvino", ExitCode.ENVIRONMENT)
    assert error.what == "the openvino runtime needs openvino, which is not installed"
    preflight(job)
    assert f"leave out  {name}: {error.what}; pip install " in plan_text(job, {})
    without(monkeypatch, "openvino", "torch")
    (told,) = found(job)
    assert told.startswith("no candidate of linux-x86_64-fastest could be built: linux-x86_64-openvino: the openvino")


def test_what_a_metric_needs_is_missed_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(source="net.py:model", targets=(TARGET,), schemes=("fp32",), inputs=("1x4",))
    job = dataclasses.replace(job, data=DataConfig(metric="map"))
    preflight(job)
    without(monkeypatch, "pycocotools")
    assert found(job) == ["--metric map needs pycocotools, which is not installed"]


def test_a_choice_by_times_needs_times_that_count() -> None:
    group = load_target_or_group("linux-x86_64-fastest")
    assert isinstance(group, TargetGroup)
    job = Job(source="net.py:model", groups=(group,), schemes=("fp32",), inputs=("1x4",))
    elsewhere = dataclasses.replace(job, gates=GateOptions(times_on="No Such CPU"))
    assert found(elsewhere) == [
        "linux-x86_64-fastest is chosen by times of this machine, but only those of another kind of machine count "
        "(--latency-cpu No Such CPU)"
    ]
    with pytest.raises(UsageError, match="but a cluster's workers build here"):
        preflight(job, builds_here=False)
