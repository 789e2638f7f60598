"""edgeq.toml and the command line become one job: the command line wins, and nothing is misread in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.config.options import Values, limit_table, merge, read_project, validated
from edgeq.config.resolve import request
from edgeq.core.config import QatConfig
from edgeq.core.errors import UnsupportedError, UsageError

FULL = """
model = "model.py:factory"
name = "net"
model_version = "3"
weights = "weights.safetensors"
inputs = ["1x3x32x32"]
input_dtype = "uint8"
dynamic_batch = true
targets = ["android-arm64-xnnpack", "mine.toml"]
schemes = ["static-int8", "fp32"]
out = "dist"
install_into = ["app"]
seed = 7
observer = "minmax"
keep_fp32 = ["head"]
reuse_qparams_from = "released"
compare = true
cache = false
limit_on = "point,predicted"
shipped = "shipped"
predict_for = "board.toml"
allow_unmeasured = ["latency"]
store_limits = ["play-base-module"]
app_size = "150MB"

[data]
calibration = "cal"
evaluation = "eval.npz"
metric = "metric.py:score"
preprocess = "prep.toml"
labels = "labels.txt"
num_calibration_samples = 64
search = "search.npz"
num_search_samples = 100
lint = "warn"
skip_bad_images = true

[qat]
data = "more.npz"
train = "loop.py:train"
epochs = 3
lr = 0.01
batch = 16
samples = 500

[limit]
size = "5MB"
latency = "40ms"

[device]
on = "host"
cpu = ["cortex-a72"]
samples = 8
timeout_s = 60

[build]
cache = ["local", "file:///mnt/edgeq"]
cache_read_only = true
cache_trust = ["ci-keys"]
cache_key = "ci-keys"
cluster = "tcp://scheduler:8786"
latency_cpu = "Xeon"
"""
SHIPPED = Path(__file__).parents[3] / "targets" / "android-arm64-xnnpack.toml"


def minimal(**values: object) -> Values:
    return validated({"model": "digits", "targets": ["android-arm64-xnnpack"], **values}, "test")


def test_a_full_file_becomes_a_job(project):
    folder = project / "sub"
    folder.mkdir()
    (folder / "edgeq.toml").write_text(FULL)
    (folder / "mine.toml").write_text('name = "mine"\nextends = "android-arm64-xnnpack"\n')
    job = request({}, read_project(Path("sub/edgeq.toml")))
    assert [target.name for target in job.targets] == ["android-arm64-xnnpack", "mine"]
    assert job.install_into == (Path("sub/app"),)
    assert (job.source, job.weights, job.out) == ("sub/model.py:factory", "sub/weights.safetensors", Path("sub/dist"))
    assert (job.name, job.model_version, job.seed, job.observer) == ("net", "3", 7, "minmax")
    assert (job.inputs, job.keep_fp32, job.cache, job.compare) == (("1x3x32x32",), ("head",), False, True)
    assert job.schemes == ("static-int8", "fp32")
    assert (job.build.cache, job.build.cluster) == (("local", "file:///mnt/edgeq"), "tcp://scheduler:8786")
    assert (job.build.cache_trust, job.build.cache_key) == (("sub/ci-keys",), Path("sub/ci-keys"))
    assert (job.build.latency_cpu, job.gates.times_on) == ("Xeon", "Xeon")
    assert job.reuse_qparams_from == Path("sub/released")
    data = job.data
    assert (data.calibration, data.evaluation) == ("sub/cal", "sub/eval.npz")
    assert (data.metric, data.preprocess, data.labels) == (
        "sub/metric.py:score",
        "sub/prep.toml",
        Path("sub/labels.txt"),
    )
    assert (data.search, data.num_search_samples) == ("sub/search.npz", 100)
    assert (data.num_calibration_samples, data.lint, data.skip_bad_images) == (64, "warn", True)
    assert job.qat == QatConfig(
        data="sub/more.npz", train="sub/loop.py:train", epochs=3, lr=0.01, batch=16, samples=500
    )
    gates = job.gates
    assert gates.limits == (("size", 5e6), ("latency", 40.0))
    assert (gates.limit_on, gates.allow_unmeasured) == ("point", ("latency",))
    assert (gates.latency_on, gates.shipped, gates.device) == ("predicted", Path("sub/shipped"), "sub/board.toml")
    assert (gates.store_limits, gates.app_size_bytes) == (("play-base-module",), 150_000_000)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model", "torchvision:resnet18", "torchvision:resnet18"),
        ("model", "pkg.mod:factory", "pkg.mod:factory"),
        ("model", "digits", "digits"),
        ("model", "net.pt2", "sub/net.pt2"),
        ("model", "/abs/net.pte", "/abs/net.pte"),
        ("weights", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("weights", "MobileNet_V2_Weights.IMAGENET1K_V1", "MobileNet_V2_Weights.IMAGENET1K_V1"),
        ("weights", "w.pth", "sub/w.pth"),
    ],
)
def test_only_paths_are_relative_to_the_file(project, key, text, expected):
    (project / "sub").mkdir()
    (project / "sub" / "edgeq.toml").write_text(f'{key} = "{text}"\n')
    assert read_project(Path("sub/edgeq.toml"))[key] == expected


def test_a_preset_is_no_path(project):
    (project / "sub").mkdir()
    (project / "sub" / "edgeq.toml").write_text('[data]\npreprocess = "imagenet"\n')
    assert read_project(Path("sub/edgeq.toml"))["data"]["preprocess"] == "imagenet"


def test_the_command_line_wins_and_limits_merge_by_name():
    file = validated(
        {"seed": 1, "targets": ["a", "b"], "cache": False, "limit": {"size": "5MB", "load": "1s"},
         "data": {"lint": "warn", "calibration": "cal"}},
        "file",
    )  # fmt: skip
    line = validated(
        {"targets": ["c"], "cache": True, "limit": limit_table(["size=1MB"]), "data": {"lint": "error"}}, ""
    )
    merged = merge(line, file)
    assert (merged["seed"], merged["targets"], merged["cache"]) == (1, ["c"], True)
    assert merged["limit"] == {"size": "1MB", "load": "1s"}
    assert merged["data"] == {"lint": "error", "calibration": "cal"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("taregts = []\n", ("edgeq.toml", "'taregts'", "'targets'")),
        ("[data]\ncalibraton = 'x'\n", ("edgeq.toml", "'data.calibraton'", "'calibration'")),
        ("[limit]\nsise = '5MB'\n", ("edgeq.toml", "'limit.sise'", "'size'")),
        ("seed = 'x'\n", ("edgeq.toml", "seed", "'x'")),
        ("seed = -1\n", ("edgeq.toml", "seed", "-1")),
        ("model = [\n", ("edgeq.toml", "TOML")),
        ("[data]\nnum_calibration_samples = 0\n", ("edgeq.toml", "data.num_calibration_samples")),
    ],
)
def test_a_bad_file_names_file_key_and_nearest(project, text, words):
    (project / "edgeq.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_project(None)
    for word in words:
        assert word in caught.value.what


def test_a_named_file_must_be_there(project):
    with pytest.raises(UsageError, match=r"no file mine\.toml"):
        read_project(Path("mine.toml"))
    assert read_project(None) == {}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"targets": ["android-arm64-xnpack"]}, "Did you mean 'android-arm64-xnnpack'"),
        ({"targets": []}, "no target given"),
        ({"schemes": ["static-int9"]}, "Did you mean 'static-int8'"),
        ({"observer": "histgram"}, "Did you mean 'histogram'"),
        ({"limit_on": "pont"}, "Did you mean 'point'"),
        ({"data": {"lint": "wran"}}, "Did you mean 'warn'"),
        ({"limit": {"size": "5"}}, "limit size: expected a number with a unit"),
        ({"limit": {"latency": "5MB"}}, "limit latency: unknown unit"),
        ({"app_size": "5MB"}, "--app-size was given without --store-limit"),
        ({"targets": ["android-arm64-xnnpack", str(SHIPPED)]}, "two targets are named"),
    ],
)
def test_what_is_unknown_or_missing(project, values, what):
    with pytest.raises(UsageError) as caught:
        request(minimal(**values), {})
    assert what in caught.value.what


def test_a_search_needs_an_accuracy_to_end_by():
    with pytest.raises(UsageError, match="mixed-int8 needs an accuracy limit"):
        request(minimal(schemes=["mixed-int8"], limit={"size": "5MB"}), {})
    for limit in ({"accuracy_drop": "1pp"}, {"sqnr": "30dB"}, {"agreement": "99%"}):
        assert request(minimal(schemes=["mixed-int8"], limit=limit), {}).schemes == ("mixed-int8",)


def test_options_of_a_search_that_no_scheme_does_are_refused():
    with pytest.raises(UsageError, match="--search-data is for schemes that search"):
        request(minimal(data={"search": "x.npz"}), {})


def test_a_scheme_that_the_target_does_not_list(project):
    Path("fp32only.toml").write_text('name = "fp32only"\nextends = "android-arm64-xnnpack"\nschemes = ["fp32"]\n')
    with pytest.raises(UnsupportedError, match="fp32only does not support the scheme static-int8") as caught:
        request(minimal(targets=["fp32only.toml"], schemes=["static-int8"]), {})
    assert caught.value.fix == "its schemes: fp32"


def test_a_name_given_twice_counts_once():
    job = request(minimal(targets=["android-arm64-xnnpack"] * 2, schemes=["fp32", "fp32"]), {})
    assert len(job.targets) == 1
    assert job.schemes == ("fp32",)


@pytest.mark.parametrize("texts", [["size"], ["sise=5MB"], ["size=5"], ["size=1B", "size=1GB"]])
def test_a_limit_option_that_is_none(texts):
    with pytest.raises(UsageError):
        limit_table(texts)


def test_a_scheme_that_a_shipped_target_cannot_run_names_those_it_can():
    with pytest.raises(
        UnsupportedError, match=("android-arm64-xnnpack does not support the scheme pretrained")
    ) as caught:
        request(minimal(targets=["android-arm64-xnnpack"], schemes=["pretrained"]), {})
    assert caught.value.exit_code == 3
    assert caught.value.fix.startswith("its schemes: static-int8, ")
    assert "pretrained" not in caught.value.fix


def test_other_runtimes_in_the_field_leave_the_kind_of_their_build(tmp_path):
    text = 'name = "mine"\nextends = "android-arm64-ort"\nfile_format = "ort"\nschemes = ["static-int8"]\n'
    (tmp_path / "mine.toml").write_text(text + '[app]\nbuild = "mobile"\nruntimes = ["1.18"]\n')
    project = {"app": {"runtimes": {"onnx": ["1.17"]}}}
    (target,) = request(minimal(targets=[str(tmp_path / "mine.toml")]), project).targets
    assert (target.app.runtimes, target.app.build) == (("1.17",), "mobile")


def test_modules_are_no_paths_beside_the_file(project):
    (project / "sub").mkdir()
    text = '[data]\nmetric = "pkg.mod:score"\nevaluation = "data.py:evaluation"\ncalibration = "cal"\n'
    (project / "sub/edgeq.toml").write_text(f'{text}[qat]\ndata = "pkg.mod:more"\ntrain = "loops/own.py:train"\n')
    options = read_project(Path("sub/edgeq.toml"))
    assert (options["data"]["metric"], options["data"]["evaluation"]) == ("pkg.mod:score", "sub/data.py:evaluation")
    assert options["data"]["calibration"] == "sub/cal"
    assert options["qat"] == {"data": "pkg.mod:more", "train": "sub/loops/own.py:train"}
