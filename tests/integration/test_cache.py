"""The cache answers the same command, and only that: a changed input is a miss, a damaged entry is not used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import FIXTURES, X86, Project, Result, enter, write_set
from .processes import finish, start

pytestmark = pytest.mark.slow

HELPER = "GAIN = 1.0\n"
LOADING = """
import os
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from helper import GAIN
from quarters import example_inputs, model as plain


def model():
    net = plain()
    state = load_file("weights.safetensors")
    net.load_state_dict({name: tensor * GAIN for name, tensor in state.items()})
    return net


def calibration():
    return dict(np.load(sorted(Path("parts").glob("*.npz"))[-1]))


def score(outputs, label):
    return float(np.loadtxt("bonus.txt")) + float(outputs[0].argmax() == label)
"""
ARGS = (
    *("loading.py:model", "--target", "mine.toml", "--scheme", "fp32", "--out", "out", "--name", "quarters"),
    *("--calibration-data", "loading.py:calibration", "--eval-data", "evaluation.npz", "--metric", "loading.py:score"),
    *("--labels", "labels.txt", "--quiet", "--json"),
)


def edgeq(*args: str, **variables: str) -> Result:
    """Run in a process of its own: the modules that a run imports must not be there already."""
    return finish(start("package", *args, **variables))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Project]:
    """A project whose model, data and metric each open files of their own, and a cache that holds its result."""
    with pytest.MonkeyPatch.context() as patch:
        project = enter(patch, tmp_path_factory.mktemp("cached"), template)
        Path("loading.py").write_text(LOADING)
        Path("helper.py").write_text(HELPER)
        Path("bonus.txt").write_text("0.0\n")
        Path("labels.txt").write_text("a\nb\nc\nd\n")
        Path("mine.toml").write_text(f'extends = "{X86}"\nname = "mine"\n')
        Path("parts").mkdir()
        write_set(Path("parts/a.npz"), 64, seed=1)
        save = "import torch, quarters; from safetensors.torch import save_file; "
        save += "save_file(quarters.model().state_dict(), 'weights.safetensors')"
        subprocess.run([sys.executable, "-c", save], check=True)
        result = edgeq(*ARGS)
        assert result.code == 0, result.err + result.out
        assert not result.json["rows"][0]["cached"]
        yield project


@pytest.fixture
def at_home(stored: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The stored project as the current one; what a test changes in it is undone."""
    monkeypatch.chdir(stored.root)
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(stored.cache))
    before = {path: path.read_bytes() for path in stored.root.rglob("*") if path.is_file()}
    # numpy asks the system about the file that it loads, and so its time counts
    times_ns = {path: path.stat().st_mtime_ns for path in before}
    entries = {path: path.read_bytes() for path in stored.cache.rglob("*") if path.is_file()}
    yield stored
    for path in [*stored.root.rglob("*"), *stored.cache.rglob("*")]:
        if path.is_file() and path not in before and path not in entries:
            path.unlink()
    for path, content in {**before, **entries}.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if path in times_ns:
                os.utime(path, ns=(times_ns[path], times_ns[path]))


LOOK = """
import json
import os
import sys
from pathlib import Path

from edgeq.cli.main import run
from edgeq.pipeline import cache, package

answers = os.fdopen(os.dup(1), "w")  # a run has standard output for itself


def look(job):
    key = cache.unit_key(cache.job_facts(job), job.targets[0], job.schemes[0])
    found = "hit" if cache.look_up(key, Path("looked-up")) else "miss"
    assert "torch" not in sys.modules
    print(found, file=answers, flush=True)
    os._exit(0)


package.preflight = look
for line in sys.stdin:
    if os.fork() == 0:
        code = run(["package", *json.loads(line)])
        print("it ended before it looked, with", code, file=answers, flush=True)
        os._exit(1)
    os.wait()
"""


@pytest.fixture(scope="module")
def looker(stored: Project) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported edgeq, and nothing else; each line of arguments is looked up in a fork of it."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOK],
        cwd=stored.root,
        env={**os.environ, "EDGEQ_CACHE_DIR": str(stored.cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


IsHit = Callable[..., bool]


@pytest.fixture
def is_hit(at_home: Project, looker: subprocess.Popen[str]) -> IsHit:
    """Ask the cache alone, as a run would; with other variables, in a new process."""

    def ask(*args: str, **variables: str) -> bool:
        line = json.dumps([*ARGS, *args]) + "\n"
        if variables:
            command = [sys.executable, "-c", LOOK]
            environment = {**os.environ, **variables}
            told = subprocess.run(
                command, input=line, capture_output=True, text=True, check=True, env=environment
            ).stdout
        else:
            assert looker.stdin is not None
            assert looker.stdout is not None
            looker.stdin.write(line)
            looker.stdin.flush()
            told = looker.stdout.readline()
        shutil.rmtree(at_home.root / "looked-up", ignore_errors=True)
        return {"hit": True, "miss": False}[told.strip()]

    return ask


def append(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes() + b"\n")


def test_the_same_command_again_is_a_hit_without_torch(at_home: Project) -> None:
    before = read_bundle(at_home.out / "quarters" / "mine")
    watched = "import sys; from edgeq.cli.main import run; code = run(sys.argv[1:]); "
    watched += "assert 'torch' not in sys.modules; sys.exit(code)"
    process = subprocess.run(
        [sys.executable, "-c", watched, "package", *ARGS], capture_output=True, text=True, check=False, timeout=120
    )
    assert process.returncode == 0, process.stderr
    row = json.loads(process.stdout)["rows"][0]
    assert row["cached"]
    assert row["digest"] == before.digest == read_bundle(before.folder).digest
    assert at_home.left_behind() == []


def test_a_hit_ignores_what_the_result_does_not_depend_on(at_home: Project, is_hit: IsHit) -> None:
    Path("notes.txt").write_text("beside the model's code")
    os.utime("weights.safetensors")
    os.utime("helper.py")
    assert is_hit()
    assert is_hit("--out", "elsewhere")
    assert is_hit(QUARTERS_OTHER="1")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(append("weights.safetensors"), id="weights that the factory opens in native code"),
        pytest.param(append("loading.py"), id="the factory's file"),
        pytest.param(append("helper.py"), id="a module that the factory imports"),
        pytest.param(append("quarters.py"), id="another one"),
        pytest.param(append("parts/a.npz"), id="calibration data that a function opens"),
        pytest.param(append("bonus.txt"), id="a file that only the metric opens"),
        pytest.param(append("evaluation.npz"), id="evaluation data"),
        pytest.param(append("labels.txt"), id="the labels file"),
        pytest.param(lambda: shutil.copy("parts/a.npz", "parts/b.npz"), id="a new file in a folder that was listed"),
        pytest.param(lambda: Path("torchvision.py").touch(), id="a module that might be found instead"),
    ],
)
def test_any_change_of_what_was_read_is_a_miss(at_home: Project, is_hit: IsHit, change: Callable[[], object]) -> None:
    change()
    assert not is_hit()


@pytest.mark.parametrize(
    ("args", "variables"),
    [
        (("--seed", "1"), {}),
        (("--model-version", "2"), {}),
        (("--preprocess", "unit"), {}),
        ((), {"PYTHONPATH": str(FIXTURES)}),  # any folder with a module will do
    ],
)
def test_another_option_or_environment_is_a_miss(
    at_home: Project, is_hit: IsHit, args: tuple[str, ...], variables: dict[str, str]
) -> None:
    assert not is_hit(*args, **variables)


def test_another_content_of_the_target_file_is_a_miss_and_the_old_one_a_hit_again(
    at_home: Project, is_hit: IsHit
) -> None:
    old = Path("mine.toml").read_text()
    Path("mine.toml").write_text(old + "[device]\nthreads = 1\n")
    assert not is_hit()
    Path("mine.toml").write_text(old)
    append("helper.py")()
    assert not is_hit()
    Path("helper.py").write_text(HELPER)
    assert is_hit()


def entry(project: Project) -> Path:
    (found,) = project.cache.glob("cells/*/*/entry.json")
    return found.parent


def rewrite_entry(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def damage(place: Path) -> None:
        whole = json.loads((place / "entry.json").read_text())
        change(whole)
        (place / "entry.json").write_text(json.dumps(whole))

    return damage


def flip(name: str) -> Callable[[Path], object]:
    def damage(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2] ^= 1
        (place / name).write_bytes(bytes(data))

    return damage


def lie(place: Path) -> None:
    """Make a broken gate look good in the report."""
    report = place / "bundle" / "report.json"
    report.write_text(report.read_text().replace('"scheme": "fp32"', '"scheme": "static-int8"'))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda place: (place / "entry.json").unlink(), id="no entry.json"),
        pytest.param(lambda place: os.truncate(place / "entry.json", 100), id="entry.json cut short"),
        pytest.param(lambda place: (place / "entry.json").write_text("[1]"), id="entry.json of another kind"),
        pytest.param(rewrite_entry(lambda whole: whole.pop("sha256")), id="entry.json without its hash"),
        pytest.param(rewrite_entry(lambda whole: whole["facts"].update(dependencies={})), id="no dependencies"),  # type: ignore[attr-defined]
        pytest.param(rewrite_entry(lambda whole: whole["facts"].update(digest="0" * 64)), id="another digest"),  # type: ignore[attr-defined]
        pytest.param(lambda place: (place / "bundle" / "golden.npz").unlink(), id="a missing file"),
        pytest.param(lambda place: next((place / "bundle").glob("model.*")).write_bytes(b""), id="an empty artifact"),
        pytest.param(flip("bundle/golden.npz"), id="tampered golden samples"),
        pytest.param(flip("bundle/manifest.json"), id="a tampered manifest"),
        pytest.param(lie, id="a tampered report"),
        pytest.param(lambda place: shutil.rmtree(place / "bundle"), id="no bundle"),
    ],
)
def test_a_damaged_entry_is_discarded_and_not_used(
    at_home: Project, is_hit: IsHit, damage: Callable[[Path], object]
) -> None:
    place = entry(at_home)
    damage(place)
    assert not is_hit()
    assert not place.exists()


def test_an_entry_under_another_name_is_not_used(at_home: Project, is_hit: IsHit) -> None:
    place = entry(at_home)
    moved = place.with_name("0" * 64)
    place.rename(moved)
    assert not is_hit()
    assert not moved.exists()


def test_a_run_on_a_damaged_entry_succeeds_and_mends_it(at_home: Project, is_hit: IsHit) -> None:
    flip("bundle/manifest.json")(entry(at_home))
    result = edgeq(*ARGS)
    assert result.code == 0, result.err
    assert not result.json["rows"][0]["cached"]
    assert is_hit()


def test_no_cache_neither_reads_nor_writes(at_home: Project) -> None:
    place = entry(at_home)
    before = place.stat().st_ino
    result = edgeq(*ARGS, "--no-cache")
    assert result.code == 0, result.err
    assert not result.json["rows"][0]["cached"]
    assert entry(at_home).stat().st_ino == before


def test_info_and_clear_tell_what_there_is(at_home: Project, is_hit: IsHit, capfd: pytest.CaptureFixture[str]) -> None:
    from edgeq.cli.main import run

    kept = shutil.copytree(at_home.cache, at_home.root.parent / "kept")
    assert run(["cache", "info", "--json"]) == 0
    info = json.loads(capfd.readouterr().out)["cache"]
    assert info["entries"] == 1
    assert info["size_bytes"] == sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    assert run(["cache", "clear", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["removed"] == 1
    assert run(["cache", "clear"]) == 0
    assert capfd.readouterr().out == "removed 0 entries\n"
    assert not is_hit()
    shutil.rmtree(kept)
