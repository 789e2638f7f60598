"""What the cache's key is made of. What becomes of entries is tested at the command line, in tests/integration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from edgeq.core.config import DataConfig, GateOptions, Job
from edgeq.core.files import sha256_bytes
from edgeq.core.targets import load_target
from edgeq.pipeline.cache import cache_info, clear_cache, job_facts, look_up, unit_key
from edgeq.pipeline.plan import COMPARED
from edgeq.pipeline.portable import portable
from edgeq.pipeline.tracking import current_state

TARGET = load_target("linux-x86_64-x86")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    Path("images/cat").mkdir(parents=True)
    Path("images/cat/1.png").write_bytes(b"1")
    for name in ("weights.pt", "labels.txt", "preprocess.toml", "evaluation.npz"):
        Path(name).write_bytes(b"content")
    data = DataConfig(
        calibration="images", evaluation="evaluation.npz", preprocess="preprocess.toml", labels=Path("labels.txt")
    )
    return Job(source="torchvision:resnet18", targets=(TARGET,), out=Path("out"), weights="weights.pt", data=data)


def key(job: Job, scheme: str = "fp32") -> str:
    return unit_key(job_facts(job), TARGET, scheme)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "torchvision:resnet34"},
        {"name": "other"},
        {"model_version": "2"},
        {"weights": "DEFAULT"},
        {"inputs": ("1x3x8x8",)},
        {"seed": 1},
        {"observer": "minmax"},
        {"keep_fp32": ("fc",)},
        {"data": DataConfig(calibration="images", metric="m.py:score")},
        {"gates": GateOptions(latency_on="predicted")},
    ],
)
def test_every_option_that_matters_changes_the_key(job: Job, changes: dict[str, object]) -> None:
    assert key(dataclasses.replace(job, **changes)) != key(job)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "gates",
    [
        GateOptions(limits=(("size", 1e6),)),
        GateOptions(limit_on="point"),
        GateOptions(allow_unmeasured=("latency",)),
        GateOptions(store_limits=("play-base-module",), app_size_bytes=1),
    ],
)
def test_limits_are_in_the_key_only_where_they_decide_what_is_made(job: Job, gates: GateOptions) -> None:
    other = dataclasses.replace(job, gates=gates)
    assert key(other) == key(job)
    for scheme in ("auto", "mixed-int8", f"fp32{COMPARED}"):
        assert key(other, scheme) != key(job, scheme)


@pytest.mark.parametrize("changes", [{"out": Path("elsewhere")}, {"cache": False}, {"compare": True}])
def test_where_it_goes_does_not_change_the_key(job: Job, changes: dict[str, object]) -> None:
    assert key(dataclasses.replace(job, **changes)) == key(job)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["weights.pt", "labels.txt", "preprocess.toml", "evaluation.npz", "images/cat/1.png", "images/cat/2.png"]
)
def test_the_content_of_every_named_file_is_in_the_key(job: Job, name: str) -> None:
    before = key(job)
    Path(name).write_bytes(b"other")
    assert key(job) != before


def test_weights_count_by_their_content_whatever_key_or_index_names_them(job: Job, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"1")
    shard = tmp_path / "model-00001-of-00001.safetensors"
    shard.write_bytes(b"1")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard.name}}))
    for weights, file in ((f"{tmp_path}/net.pt#ema", tmp_path / "net.pt"), (str(index), shard)):
        changed = dataclasses.replace(job, weights=weights)
        before = key(changed)
        file.write_bytes(b"2")
        assert key(changed) != before


def test_a_renamed_image_changes_the_key(job: Job) -> None:
    before = key(job)
    Path("images/dog").mkdir()
    Path("images/cat/1.png").rename("images/dog/1.png")
    assert key(job) != before


def test_scheme_and_target_are_in_the_key(job: Job) -> None:
    facts = job_facts(job)
    keys = {
        unit_key(facts, target, scheme) for target in (TARGET, load_target("linux-x86_64-fbgemm")) for scheme in "ab"
    }
    assert len(keys) == 4


def test_where_modules_come_from_matters_where_there_are_any(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = dataclasses.replace(job, source="my.models:make")
    before = key(job), key(code)
    (tmp_path / "scratch" / "storage").mkdir(parents=True)  # as Dask's workers put first
    monkeypatch.syspath_prepend(str(tmp_path / "scratch"))
    assert (key(job), key(code)) == before
    (tmp_path / "scratch" / "storage" / "module.py").touch()
    # to a model without code too: a module there may be in place of a library
    assert key(job) != before[0]
    assert key(code) != before[1]


def test_two_checkouts_of_a_project_have_one_key(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("net.py").write_text("def model(): ...")
    here = dataclasses.replace(job, source=f"{tmp_path}/net.py:model", weights=f"{tmp_path}/weights.pt#ema")
    keys = [key(here), key(dataclasses.replace(here, source="net.py:model", weights="weights.pt#ema"))]
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "checkout"
    shutil.copytree(tmp_path, other, ignore=shutil.ignore_patterns("other", "cache"))
    monkeypatch.chdir(other)
    there = dataclasses.replace(here, source=f"{other}/net.py:model", weights=f"{other}/weights.pt#ema")
    keys.append(key(there))
    assert len(set(keys)) == 1
    Path("weights.pt").write_bytes(b"other")
    assert key(there) != keys[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("net.py", "WEIGHTS = '{root}/w.bin'"),
        ("net.py", "WEIGHTS = Path(__file__).parents[1] / '{name}' / 'w.bin'"),
        ("net.py", "WEIGHTS = '../{name}/w.bin'"),
        ("list.txt", "{root}/w.bin"),
    ],
)
def test_a_project_that_names_its_own_folder_keeps_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """In another checkout its code reads this one's files."""
    monkeypatch.chdir(tmp_path)
    looked_at = {f"file:{tmp_path}/{name}": "1", f"kind:{tmp_path}": "2", "file:/etc/hosts": "3"}
    Path(name).write_text("nothing")
    assert portable(looked_at, str(tmp_path)) == {f"file:{name}": "1", "kind:.": "2", "file:/etc/hosts": "3"}
    Path(name).write_text(text.format(root=tmp_path, name=tmp_path.name))
    assert portable(looked_at, str(tmp_path)) == {**looked_at, "place:project": sha256_bytes(str(tmp_path).encode())}


@pytest.mark.parametrize("value", ["{root}/data", "{parent}", "{parent}/"])
def test_a_variable_that_leads_to_the_project_keeps_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    looked_at = {f"names:{tmp_path}": "1", "env:EDGEQ_TEST_DATA": "2"}
    monkeypatch.setenv("EDGEQ_TEST_DATA", "/elsewhere")
    assert portable(looked_at, str(tmp_path)) != looked_at
    monkeypatch.setenv("EDGEQ_TEST_DATA", value.format(root=tmp_path, parent=tmp_path.parent))
    assert portable(looked_at, str(tmp_path)) == {**looked_at, "place:project": sha256_bytes(str(tmp_path).encode())}


def test_what_is_bound_to_a_folder_is_current_in_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its absolute paths are as they were, but the code in another checkout may be another."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(f"ROOT = '{tmp_path}/a'")
    monkeypatch.chdir(tmp_path / "a")
    path = f"file:{tmp_path}/a/net.py"
    found = portable({path: current_state(path)}, str(tmp_path / "a"))
    assert all(current_state(name) == state for name, state in found.items())
    monkeypatch.chdir(tmp_path / "b")
    assert {name: current_state(name) == state for name, state in found.items()} == {path: True, "place:project": False}


def test_a_folder_called_like_the_demo_model_is_not_its_source(job: Job) -> None:
    demo = dataclasses.replace(job, source="digits")
    before = key(demo)
    Path("digits").mkdir()
    Path("digits/model.pt").touch()
    assert key(demo) == before


def test_no_cache_folder_is_an_empty_cache(job: Job, tmp_path: Path) -> None:
    assert look_up("0" * 64, tmp_path / "target") is None
    assert (cache_info().entries, cache_info().size_bytes, clear_cache()) == (0, 0, 0)
    assert not (tmp_path / "cache").exists()
