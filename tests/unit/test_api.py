"""`import edgeq`: its names, live models and data, reports, and the same digests as the command line."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeq
import edgeq.verify.host
from edgeq.core.config import DataConfig
from edgeq.core.errors import ExitCode, IntegrityError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.load.live import LiveObjects, open_dataset

X86, XNNPACK = "linux-x86_64-x86", "linux-x86_64-xnnpack"
IMAGE = (TensorSpec(name="image", dtype="float32", shape=(1, 1, 2, 2)),)
PAIR = (
    TensorSpec(name="left", dtype="float32", shape=(1, 3)),
    TensorSpec(name="right", dtype="int64", shape=(1, 2)),
)


# ---- import


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import time; start = time.perf_counter(); import edgeq, sys; seconds = time.perf_counter() - start;"
        "print(seconds, [name for name in ('torch', 'pydantic', 'numpy', 'rich', 'typer') if name in sys.modules])"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
        for _ in range(3)
    ]
    assert min(float(seconds) for seconds, _ in found) < 0.1
    assert {loaded.strip() for _, loaded in found} == {"[]"}


def test_public_names() -> None:
    assert {name for name in edgeq.__all__ if not hasattr(edgeq, name)} == set()
    assert set(edgeq.__all__) <= set(dir(edgeq))
    with pytest.raises(AttributeError, match="no attribute 'pack'"):
        _ = edgeq.pack  # type: ignore[attr-defined]
    assert Path(edgeq.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", ["verify", "compare", "inspect", "install", "sensitivity"])
def test_the_page_states_the_signature(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    (stated,) = re.findall(rf"^`{name}\(([^)]*)\)`", page, re.MULTILINE)
    parameters = inspect.signature(getattr(edgeq, name)).parameters.values()
    expected = [
        one.name if one.default in (one.empty, None) else f"{one.name}={one.default!r}".replace("'", '"')
        for one in parameters
    ]
    assert [word for word in re.split(r",\s+", stated) if word != "*"] == expected


def test_verify_is_a_function_whatever_was_imported_before() -> None:
    assert callable(edgeq.verify)
    assert "limits" in inspect.signature(edgeq.verify).parameters
    assert edgeq.verify.host is sys.modules["edgeq.verify.host"]  # type: ignore[attr-defined]
    code = (
        "import edgeq.verify.wire, edgeq; from edgeq import verify; assert callable(edgeq.verify) and callable(verify)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_targets_and_schemes() -> None:
    assert X86 in [target.name for target in edgeq.targets()]
    assert "static-int8" in edgeq.schemes("executorch")
    assert "bf16" not in edgeq.schemes("executorch")
    assert "bf16" in edgeq.schemes()
    with pytest.raises(edgeq.EdgeqError, match="Did you mean 'executorch'"):
        edgeq.schemes("executorch2")


# ---- live data


def opened(value: Any, specs: tuple[TensorSpec, ...] = IMAGE, limit: int | None = None) -> list[tuple[Any, Any]]:
    """Return the samples of live data: the inputs, and the label."""
    with LiveObjects() as live:
        name = live.add_data("calibration", value)
        data, _ = open_dataset(
            name, role="calibration", specs=specs, preprocess=None, options=DataConfig(), limit=limit, seed=0
        )
        return [(sample.inputs, sample.label) for sample in data]


IMAGES = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
LABELS = np.arange(6)


class Samples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(IMAGES[index]), int(LABELS[index])


def generator() -> Iterator[tuple[Any, Any]]:
    for start in (0, 4):
        yield IMAGES[start : start + 4], LABELS[start : start + 4]


@pytest.mark.parametrize(
    "value",
    [
        (IMAGES, LABELS),
        {"image": torch.from_numpy(IMAGES), "y": torch.from_numpy(LABELS)},
        list(zip(IMAGES, LABELS, strict=True)),
        list(zip(IMAGES[:, None], LABELS[:, None], strict=True)),
        generator(),
        generator,
        lambda: (IMAGES, LABELS),
        Samples(),
        torch.utils.data.DataLoader(Samples(), batch_size=4),
        torch.utils.data.DataLoader(Samples(), batch_size=None),
        [{"image": image, "y": label} for image, label in zip(IMAGES, LABELS, strict=True)],
        [(IMAGES[:5], LABELS[:5]), (IMAGES[5], LABELS[5])],
        (IMAGES.astype(np.float64), list(LABELS)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labelled_data_of_any_form_gives_the_same_samples(value: Any) -> None:
    found = opened(value)
    assert [label for _, label in found] == list(range(6))
    for (inputs, _), image in zip(found, IMAGES, strict=True):
        np.testing.assert_array_equal(inputs[0], image)
        assert inputs[0].dtype == np.float32


@pytest.mark.parametrize(
    "value",
    [IMAGES, torch.from_numpy(IMAGES), list(IMAGES), [IMAGES[:4], IMAGES[4:]], [(image,) for image in IMAGES]],
    ids=lambda value: type(value).__name__,
)
def test_data_without_labels(value: Any) -> None:
    found = opened(value)
    assert [label for _, label in found] == [None] * 6
    np.testing.assert_array_equal(np.stack([inputs[0] for inputs, _ in found]), IMAGES)


LEFT, RIGHT = np.ones((4, 3), np.float32), np.arange(8).reshape(4, 2)


@pytest.mark.parametrize(
    ("value", "labelled"),
    [
        ([(LEFT, RIGHT)], False),
        ([(LEFT[i], RIGHT[i]) for i in range(4)], False),
        ([((LEFT, RIGHT), LABELS[:4])], True),
        ([(LEFT, RIGHT, LABELS[:4])], True),
        ([({"right": RIGHT, "left": LEFT}, LABELS[:4])], True),
        (({"right": RIGHT, "left": LEFT}, LABELS[:4]), True),
        (((LEFT, RIGHT), LABELS[:4]), True),
    ],
)
def test_data_of_a_model_with_two_inputs(value: Any, labelled: bool) -> None:
    found = opened(value, PAIR)
    assert [label for _, label in found] == (list(range(4)) if labelled else [None] * 4)
    np.testing.assert_array_equal(np.stack([inputs[1] for inputs, _ in found]), RIGHT)


def test_a_stream_is_read_as_far_as_needed_and_only_once() -> None:
    taken = []

    def endless() -> Iterator[Any]:
        for i in range(10**9):
            taken.append(i)
            yield np.full((2, 1, 2, 2), i, np.float32)

    with LiveObjects() as live:
        name = live.add_data("calibration", endless())
        sizes = []
        for limit in (3, 3, 5):
            data, _ = open_dataset(
                name, role="calibration", specs=IMAGE, preprocess=None, options=DataConfig(), limit=limit, seed=0
            )
            sizes.append([float(sample.inputs[0].flat[0]) for sample in data])
    assert sizes == [[0, 0, 1], [0, 0, 1], [0, 0, 1, 1, 2]]
    assert len(taken) == 3


def test_a_loaders_own_buffer_may_be_used_again() -> None:
    def reusing() -> Iterator[Any]:
        buffer = np.zeros((1, 1, 2, 2), np.float32)
        for i in range(3):
            buffer[:] = i
            yield buffer

    assert [inputs[0].flat[0] for inputs, _ in opened(reusing)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "cannot take data from a int"),
        ([(IMAGES, LABELS[:3])], "the same number of samples"),
        ([], "at least 1 sample"),
        ([np.zeros((4, 2, 2, 2), np.float32)], r"expects \[1, 2, 2\]"),
        ([(IMAGES, LABELS, LABELS)], "expected 1 input "),
        ([IMAGES.astype(np.int64)], "expects float32, got int64"),
        ([object()], "Python objects"),
    ],
)
def test_data_that_does_not_fit_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(value)


def test_an_error_in_the_callers_generator_names_its_line() -> None:
    def broken() -> Iterator[Any]:
        yield IMAGES[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(UsageError, match=r"RuntimeError at test_api\.py:\d+: the disk is gone"):
        opened(broken)


def test_live_names_are_forgotten() -> None:
    with LiveObjects() as live:
        source = live.add_model(nn.Linear(2, 2), None)
        assert source.rpartition(":")[0] in sys.modules
    assert not [name for name in sys.modules if name.startswith("edgeq_live")]


# ---- arguments


def test_mistakes_in_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call, message in (
        (lambda: edgeq.package("digits"), "no target given"),
        (lambda: edgeq.package("digits", targets=X86, options={"sed": 1}), "Did you mean 'seed'"),
        (lambda: edgeq.package("digits", targets=X86, limits={"weight": "1MB"}), "weight"),
        (lambda: edgeq.package("digits", targets=X86, limits=edgeq.Limits(size="5pp")), "size"),
        (lambda: edgeq.package("digits", targets=X86, example_inputs=torch.zeros(1)), "needs a live module"),
        (lambda: edgeq.verify(tmp_path, on="cloud"), "unknown value of --on"),
        (lambda: edgeq.inspect(tmp_path), "without a manifest"),
        (lambda: edgeq.load_config(tmp_path / "edgeq.toml"), "no file"),
        (lambda: edgeq.compare(tmp_path, tmp_path, samples=0), "expected 1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        edgeq.package(3, targets=X86)
    assert not Path("out").exists()


# ---- runs


class Net(nn.Module):
    """Takes float32 [N, 8], returns float32 logits [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


FILE = """
import numpy as np
from test_api import Net, features

def net():
    return Net()

def example_inputs():
    import torch
    return (torch.zeros(1, 8),)

def margin(outputs, label):
    return float(outputs[0].argmax() == label)
"""


def features(seed: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(128, 8)).astype(np.float32)
    return values, Net()(torch.from_numpy(values)).argmax(dim=1).numpy()


def margin(outputs: tuple[np.ndarray, ...], label: int) -> float:
    return float(outputs[0].argmax() == label)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> edgeq.RunReport:
    """A live module with live data, for two schemes."""
    model = Net()
    model.train()
    made = edgeq.package(
        model,
        targets=X86,
        example_inputs=torch.zeros(1, 8),
        calibration=features(1),
        evaluation=features(2),
        metric=margin,
        schemes=["fp32", "static-int8"],
        limits=edgeq.Limits(size="6kB", accuracy_drop="20pp"),
        name="net",
        out=tmp_path_factory.mktemp("api") / "out",
        on="host",
        progress=False,
    )
    assert model.training  # the caller's module is left as it was
    return made


@pytest.mark.slow
def test_a_report(report: edgeq.RunReport, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.ok
    assert report.exit_code == ExitCode.OK
    int8 = report[X86, "static-int8"]
    assert int8 is report[f"{X86}@static-int8"]
    assert list(report) == [report[f"{X86}@fp32"], int8]
    with pytest.raises(KeyError, match="several results"):
        _ = report[X86]
    with pytest.raises(KeyError, match="no result"):
        _ = report["android-arm64-xnnpack"]
    assert int8.artifact_path.stat().st_size == int8.size_bytes
    assert int8.bundle.manifest.scheme == "static-int8"
    assert {"size", "accuracy_drop", "parity"} <= {gate.name for gate in int8.gates}
    report.raise_if_failed()
    html = report._repr_html_()
    assert html.count("<tr>") == 3
    assert X86 in html
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_live_module_has_the_digest_of_the_same_module_in_a_file(report: edgeq.RunReport, tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", features=features(1)[0], y=features(1)[1])
    np.savez(tmp_path / "evaluation.npz", features=features(2)[0], y=features(2)[1])
    (tmp_path / "net.py").write_text(FILE)
    command = [
        *(sys.executable, "-m", "edgeq", "package", "net.py:net", "--target", X86, "--name", "net", "--on", "host"),
        *("--calibration-data", "calibration.npz", "--eval-data", "evaluation.npz", "--metric", "net.py:margin"),
        *("--scheme", "fp32", "--scheme", "static-int8", "--limit", "size=6kB", "--limit", "accuracy_drop=20pp"),
        *("--quiet", "--no-cache"),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True)
    from edgeq.bundle.reader import read_bundle

    for result in report:
        found = read_bundle(tmp_path / "out" / "net" / result.label)
        assert found.digest == result.digest


@pytest.mark.slow
def test_verify_compare_and_inspect_take_a_result(report: edgeq.RunReport) -> None:
    fp32, int8 = report.results
    found = edgeq.verify(int8, evaluation=features(2), metric=margin, progress=False)
    assert found.ok
    assert found.score is not None
    assert found.score.same_data
    found.raise_if_failed()
    tight = edgeq.verify(int8, limits=edgeq.Limits(size="1kB"), progress=False)
    with pytest.raises(edgeq.GateFailed, match="size") as failure:
        tight.raise_if_failed()
    assert failure.value.exit_code == ExitCode.SIZE
    outputs = edgeq.compare(fp32, int8, evaluation=features(2)[0], samples=10, progress=False).outputs
    assert (outputs.samples, outputs.inputs) == (10, "evaluation")
    assert edgeq.inspect(int8).bundle.digest == int8.digest  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="but edgeq installs into apps for android and ios only"):
        edgeq.install(int8, int8.path)


@pytest.mark.slow
def test_a_failed_gate_raises_only_when_asked(tmp_path: Path) -> None:
    report = edgeq.package(
        Net(),
        targets=[target for target in edgeq.targets() if target.name == X86],
        example_inputs=(torch.zeros(1, 8),),
        schemes="fp32",
        limits={"size": "1kB"},
        out=tmp_path / "out",
        on="host",
        progress=False,
    )
    assert (report.ok, report.exit_code) == (False, ExitCode.SIZE)
    assert report[X86].path == tmp_path / "out" / "rejected" / "Net" / X86
    assert report[X86].artifact_path.is_file()
    with pytest.raises(edgeq.GateFailed) as failure:
        report.raise_if_failed()
    assert [gate.name for gate in failure.value.gates] == ["size"]
    assert "size" in report._repr_html_()
    (report[X86].path / "manifest.json").unlink()
    with pytest.raises(IntegrityError):
        _ = report[X86].bundle


@pytest.mark.slow
def test_an_exported_program(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (torch.zeros(1, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    made = [
        edgeq.package(
            model, targets=XNNPACK, schemes="fp32", name="net", out=tmp_path / where, on="host", progress=False
        )
        for where, model in (("live", program), ("file", tmp_path / "net.pt2"))
    ]
    assert [report.ok for report in made] == [True, True]
    live, file = (report[XNNPACK].artifact_path.read_bytes() for report in made)
    assert live == file


@pytest.mark.slow
def test_the_digits_have_the_digest_of_the_command_line(tmp_path: Path) -> None:
    report = edgeq.package(
        "digits", targets=X86, out=tmp_path / "api", on="host", options={"cache": False}, progress=False
    )
    command = [sys.executable, "-m", "edgeq", "package", "digits", "--target", X86, "--on", "host", "--no-cache", "-q"]
    subprocess.run([*command, "--out", str(tmp_path / "cli")], check=True, capture_output=True)
    from edgeq.bundle.reader import read_bundle

    assert read_bundle(tmp_path / "cli" / "digits" / X86).digest == report[X86].digest


@pytest.mark.slow
def test_another_model_of_the_same_class_is_not_replaced_unawares(tmp_path: Path) -> None:
    def made(width: int) -> edgeq.RunReport:
        model = nn.Sequential(nn.Linear(8, width))
        return edgeq.package(
            model,
            targets=X86,
            schemes="fp32",
            example_inputs=torch.zeros(1, 8),
            out=tmp_path,
            on="host",
            progress=False,
        )

    made(4)
    made(4)
    with pytest.raises(UsageError, match="would replace it under the same name"):
        made(5)


COMPILER = """
import sys
import numpy as np
import torch
import edgeq
report = edgeq.package(
    torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU()),
    targets="linux-x86_64-x86", example_inputs=torch.zeros(1, 1, 8, 8),
    calibration=np.random.default_rng(0).normal(size=(32, 1, 8, 8)).astype(np.float32),
    on="host", name="net", progress=False,
)
assert report.rows, report
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


@pytest.mark.slow
def test_packaging_by_fx_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COMPILER], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


SCRIPT = """
import edgeq
edgeq.{call}
"""
TINY = """
import torch

def model():
    return torch.nn.Linear(8, 4)

def example_inputs():
    return (torch.zeros(1, 8),)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "moment"),
    [
        (f'package("digits", targets="{X86}", on="host", options={{"cache": False}})', "calibrate"),
        (f'package("net.py:model", targets="{X86}", schemes="fp32", on="host", options={{"cache": False}})', "verify"),
        ("build()", "verify"),
    ],
)
def test_ctrl_c_leaves_no_child_process(call: str, moment: str, tmp_path: Path) -> None:
    from tests.integration.processes import descendants, wait_for, wait_until_dead

    (tmp_path / "script.py").write_text(SCRIPT.format(call=call))
    (tmp_path / "net.py").write_text(TINY)
    (tmp_path / "edgeq.toml").write_text(
        f'model = "net.py:model"\ntargets = ["{X86}"]\nschemes = ["fp32"]\ncache = false\ndevice.on = "host"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "script.py"], stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    wait_for(process, moment)
    children = descendants(process.pid)
    assert children
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    # by SIGINT, or by code 1 where Python's own note of an interrupt was lost in an exec() of a library
    assert process.returncode in (-signal.SIGINT, 1), err
    # Python may add a note on semaphores that it cleared itself
    assert "\nKeyboardInterrupt" in err
    assert wait_until_dead(children) == set()
    assert list((tmp_path / "out").glob("*")) == []
