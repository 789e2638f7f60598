"""Every option of a configuration is documented, can be given, and is in the cache key or says why it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
import typer.main
import typer.testing
from hypothesis import given
from hypothesis import strategies as st

from edgeq.cli.main import app, run
from edgeq.cli.options import ConfigOptions, grouped, to_values
from edgeq.config.options import filled, load_config, merge, read_project, to_config, validated, values_of
from edgeq.config.resolve import request, resolve
from edgeq.core.config import PANELS, DataConfig, Job, Limits, PackageConfig, RunConfig
from edgeq.core.errors import UsageError
from edgeq.core.marks import (
    BundleFolder,
    DataPath,
    Ge,
    Gt,
    InputFile,
    ModelFile,
    Option,
    PathMark,
    WeightsFile,
    options_of,
)
from edgeq.core.schemes import LIMITS
from edgeq.pipeline.cache import job_facts, unit_key
from edgeq.pipeline.preflight import preflight

TARGET = "linux-x86_64-x86"
PLAIN = {"model": "torchvision:resnet18", "targets": [TARGET]}
OPTIONS = options_of(PackageConfig)
LEAVES = [option for option in OPTIONS if not option.is_table]
FLAGS = [option for option in OPTIONS if option.flag is not None]
Checked = InputFile | DataPath | WeightsFile | BundleFolder
PATHS = [option for option in LEAVES if option.path is not None]
LIMIT_TEXTS = {"cycles": "3Mcycles", "bytes": "5MB", "ms": "40ms", "pp": "0.5pp", "%": "2%", "dB": "30dB"}
# values of options whose text has a form of its own; all others follow from the type
OTHERS: dict[str, Any] = {
    "model": "torchvision:resnet34",
    "targets": ["linux-x86_64-fbgemm"],
    "device.on": "host",
    "limit_on": "point",
    "observer": "minmax",
    "app_size": "150MB",
    "time_budget": "10m",
    "app.runtimes": {"torchscript": ["2.1.0"]},
    "app.runtime_size": {"linux-x86_64": {"torchscript": "5MB"}},
    **{f"limit.{name}": LIMIT_TEXTS[kind.dimension] for name, kind in LIMITS.items()},
}

each = pytest.mark.parametrize("option", LEAVES, ids=lambda option: option.key)
each_flag = pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.key)
each_path = pytest.mark.parametrize("option", PATHS, ids=lambda option: option.key)


def other(option: Option) -> Any:
    """Return a valid value that is not the default, as edgeq.toml has it."""
    if option.key in OTHERS:
        return OTHERS[option.key]
    kinds = (option.type, *get_args(option.type))
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    if choices:
        chosen = next(choice for choice in choices if choice != option.default)
        return [chosen] if get_origin(option.type) is tuple else chosen
    if bool in kinds:
        return not option.default
    if int in kinds or float in kinds:
        least = next((int(mark.bound) for mark in option.marks if isinstance(mark, Ge | Gt)), 0)
        return least + 1 if least + 1 != option.default else least + 2
    return ["other"] if get_origin(option.type) is tuple else "other"


def table(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: table(rest, value) if rest else value}


def look_up(values: Mapping[str, Any], key: str) -> Any:
    head, _, rest = key.partition(".")
    return look_up(values[head], rest) if rest else values[head]


def resolved(*changes: dict[str, Any]) -> Job:
    values = PLAIN
    for change in changes:
        values = merge(change, values)
    return resolve(to_config(validated(values, "test")))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@each
def test_it_is_documented(option: Option) -> None:
    assert option.doc is not None
    assert option.doc.text.endswith(".")
    assert (option.flag is None) == (option.panel is None)
    # what has no flag of its own is set by its table's, or stands in edgeq.toml alone
    assert option.flag is not None or option.key.startswith(("limit.", "app."))


@each_flag
def test_help_lists_it_under_its_panel(option: Option) -> None:
    name = "build" if option.key == "build.cluster" else "package"  # one model is built on one machine
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, [], resilient_parsing=True, terminal_width=100) as context:
        text = command.get_help(context)
    sections = dict(part.split(":\n", 1) for part in text.split("\n\n") if ":\n" in part)
    assert name == "build" or set(sections) == {panel.title for panel in PANELS}
    listed = sections[option.panel.title].split()
    assert option.flag.name.partition("/")[0] in listed
    assert option.doc.text.split()[0] in listed


@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_the_terminal_and_starts_with_the_common_options(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["package", "--help"]) == 0
    text = capfd.readouterr().out
    lines = text.splitlines()
    assert columns - 20 < max(map(len, lines)) <= columns
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [panel.title for panel in PANELS]
    common = text[: text.index("Advanced:")]
    options = [line.split()[0] for line in common.splitlines() if line.startswith("  -")]
    assert len(options) <= 16


@each_flag
def test_the_command_line_sets_it(option: Option) -> None:
    seen: list[dict[str, Any]] = []

    @grouped
    def command(options: Annotated[dict[str, Any], ConfigOptions()]) -> None:
        seen.append(to_values(options))

    probe = typer.Typer()
    probe.command()(command)
    if option.key == "limit":
        expected: Any = {"size": "5MB", "latency": "40ms"}
        argv = ["--limit", "size=5MB", "--limit", "latency=40ms"]
    else:
        expected = other(option)
        on, _, off = option.flag.name.partition("/")
        if isinstance(expected, bool):
            argv = [on if expected else off]
        else:
            argv = [
                word
                for value in (expected if isinstance(expected, list) else [expected])
                for word in ([on, str(value)] if on.startswith("-") else [str(value)])
            ]
    result = typer.testing.CliRunner().invoke(probe, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen == [table(option.key, expected)]


@each
def test_edgeq_toml_sets_it(option: Option) -> None:
    value = other(option)
    config = to_config(validated(merge(table(option.key, value), PLAIN), "test"))
    assert option.value_in(config) != option.default
    assert look_up(values_of(config), option.key) == value


@each
def test_it_changes_the_cache_key_or_says_why_not(option: Option) -> None:
    # these need another option beside them
    needed = {"app_size": ("store_limits", ["play-base-module"]), "time_budget": ("schemes", ["auto"])}
    beside = table(*needed[option.key]) if option.key in needed else {}
    same, changed = resolved(beside), resolved(beside, table(option.key, other(option)))
    # sizes in [app] are judged over all models, and a release's limits when it is published
    beyond_a_job = {f"limit.{name}" for name, kind in LIMITS.items() if kind.measured_by == "release"}
    assert same != changed or option.key in beyond_a_job or option.key.startswith("app.")
    keys = [unit_key(job_facts(job), same.targets[0], "static-int8") for job in (same, changed)]
    is_in_key = keys[0] != keys[1]
    assert is_in_key == (option.not_in_key is None)
    assert option.not_in_key is None or len(option.not_in_key.reason) > 10


@each_path
def test_the_content_of_a_file_changes_the_cache_key_with_it(option: Option) -> None:
    text = {"model": "net.pt2", "data.preprocess": "own.toml", "predict_for": "own.toml"}.get(option.key, "own.bin")
    if option.not_in_key is not None:
        return
    keys = []
    for content in ("one", "two"):
        Path(text).write_text(content)
        keys.append(job_facts(resolved(table(option.key, [text] if get_origin(option.type) is tuple else text))))
    assert keys[0] != keys[1]
    assert keys[0]["files"][text] != keys[1]["files"][text]


@each_path
def test_its_path_is_relative_to_the_file(option: Option) -> None:
    Path("sub").mkdir()
    many = get_origin(option.type) is tuple
    for text, expected in (("own.toml", "sub/own.toml"), ("/abs/own.toml", "/abs/own.toml")):
        if isinstance(option.path, ModelFile | WeightsFile):
            text, expected = (
                name.replace(".toml", ".pt2" if option.key == "model" else ".pt") for name in (text, expected)
            )
        value = f'["{text}"]' if many else f'"{text}"'
        head, _, name = option.key.rpartition(".")
        Path("sub/edgeq.toml").write_text(f"[{head}]\n{name} = {value}\n" if head else f"{name} = {value}\n")
        found = look_up(read_project(Path("sub/edgeq.toml")), option.key)
        assert found == ([expected] if many else expected)


@pytest.mark.parametrize(
    "option",
    [option for option in options_of(RunConfig) if isinstance(option.path, Checked)],
    ids=lambda option: option.key,
)
def test_a_missing_file_is_refused_by_the_name_of_its_option(option: Option) -> None:
    scheme = {"schemes": ["fp32"], "device": {"on": "host"}}
    text = "missing/weights.pt" if isinstance(option.path, WeightsFile) else "missing.py:function"
    missing = "missing/weights.pt" if isinstance(option.path, WeightsFile) else "missing.py"
    if isinstance(option.path, InputFile | BundleFolder):
        text = missing = "missing"
    with pytest.raises(UsageError) as caught:
        preflight(resolved(scheme, table(option.key, text)))
    assert caught.value.what == f"{option.flag.name}: no such {option.path.noun}: {missing}"


def test_only_known_marks_of_paths_are_left_to_other_checks() -> None:
    """A new kind of path either checks that it exists, or is listed here with what checks it."""
    unchecked = {type(option.path) for option in PATHS if type(option.path).missing is PathMark.missing}
    assert {kind.__name__ for kind in unchecked} == {
        *("ModelFile", "PresetFile", "ProfileFile"),  # checked by what reads them
        *("OutputFolder", "AppFolder"),  # made, or checked by `match_apps`
    }


def test_limits_are_those_of_the_table_of_limits() -> None:
    assert [field.name for field in dataclasses.fields(Limits)] == list(LIMITS)


def test_a_job_adds_to_the_key_only_what_it_looked_up() -> None:
    shared = {option.key for option in options_of(RunConfig)}
    own = [option for option in options_of(Job) if option.key not in shared and "." not in option.key]
    assert {option.key for option in own if option.not_in_key is None} == {"source", "observer", "gates"}
    assert {option.key for option in own if option.not_in_key is not None} == {"targets", "groups", "schemes"}


def test_a_configuration_is_made_in_python_of_plain_values() -> None:
    job = resolve(
        PackageConfig(
            model="torchvision:resnet18",
            targets=(TARGET,),
            schemes=("static-int8",),
            limit=Limits(size="5MB", accuracy_drop="0.5pp"),
            out=Path("bundles"),
        )
    )
    assert [target.name for target in job.targets] == [TARGET]
    assert job.gates.limits == (("size", 5e6), ("accuracy_drop", 0.5))
    assert (job.schemes, job.out, job.data.num_calibration_samples) == (("static-int8",), Path("bundles"), 128)


def test_a_file_becomes_the_same_configuration() -> None:
    Path("sub").mkdir()
    Path("sub/edgeq.toml").write_text('model = "net.pt2"\ntargets = ["a", "b.toml"]\n[data]\nlint = "warn"\n')
    assert load_config(Path("sub/edgeq.toml")) == PackageConfig(
        model="sub/net.pt2", targets=("a", "sub/b.toml"), data=DataConfig(lint="warn")
    )


def test_lists_and_texts_do_where_python_has_tuples_and_paths() -> None:
    plain: dict[str, Any] = {"targets": [TARGET], "out": "bundles", "shipped": "old", "inputs": ["1x3x8x8"]}
    job = resolve(PackageConfig(model="torchvision:resnet18", **plain))
    assert (job.out, job.gates.shipped, job.inputs) == (Path("bundles"), Path("old"), ("1x3x8x8",))
    tables: dict[str, Any] = {"limit": {"size": "5MB"}, "data": {"calibration": "cal", "num_calibration_samples": 9}}
    job = resolve(PackageConfig(model="torchvision:resnet18", targets=(TARGET,), **tables))
    assert (job.gates.limits, job.data) == (
        (("size", 5e6),),
        DataConfig(calibration="cal", num_calibration_samples=9),
    )


def test_what_python_gives_is_validated_like_a_file() -> None:
    for changes, what in (
        ({"seed": -1}, "PackageConfig: seed: Input should be greater than or equal to 0, got -1"),
        ({"observer": "histgram"}, "PackageConfig: observer: unknown value 'histgram'. Did you mean 'histogram'?"),
        ({"schemes": "fp32"}, "PackageConfig: schemes: Input should be a valid list, got 'fp32'"),
        ({"limit": Limits(size="5")}, "limit size: expected a number with a unit"),
        ({"limit": 5}, "PackageConfig: limit: Input should be a table, got 5"),
        ({"seed": None}, "PackageConfig: seed: Input should be a valid integer, got None"),
        ({"data": {"calibraton": "cal"}}, "PackageConfig: unknown key 'data.calibraton'. Did you mean 'calibration'?"),
    ):
        config = PackageConfig(**{"model": "digits", "targets": (TARGET,), **changes})
        with pytest.raises(UsageError) as caught:
            resolve(config)
        assert caught.value.what.startswith(what)


def test_an_error_on_the_command_line_names_the_option() -> None:
    for values, what in (
        (
            {"data": {"num_calibration_samples": 0}},
            "--num-calibration-samples: Input should be greater than or equal to 1, got 0",
        ),
        ({"schemes": ["fp23"]}, "--scheme: unknown value 'fp23'. Did you mean 'fp32'?"),
        ({"device": {"timeout_s": float("inf")}}, "--timeout: Input should be less than inf, got inf"),
        ({"device": {"timeout_s": float("nan")}}, "--timeout: Input should be less than inf, got nan"),
    ):
        with pytest.raises(UsageError) as caught:
            to_values(values)
        assert caught.value.what == what


def test_limits_keep_their_order_and_have_one_value_each() -> None:
    texts = ["load=2s", "size=5MB", "delta=1MB", "load=2s"]
    assert list(to_values({"limit": texts})["limit"].items()) == [("load", "2s"), ("size", "5MB"), ("delta", "1MB")]
    with pytest.raises(UsageError, match="--limit load is given twice, as 1s and as 2s"):
        to_values({"limit": ["load=1s", "load=2s"]})


def test_a_limit_of_a_release_waits_in_a_file_and_is_refused_on_the_command_line() -> None:
    limit = {"limit": {"delta": "1MB", "size": "5MB"}}
    assert request({}, PLAIN | limit).gates.limits == (("size", 5e6),)
    with pytest.raises(UsageError, match="the limit delta is measured when a bundle is released"):
        request(limit, PLAIN)


# ---- the command line over the file


def tables(options: list[Option]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw the options of an edgeq.toml: some of them, each with a value that is not its default."""
    keys = st.sets(st.sampled_from([option.key for option in options]))
    values = {option.key: other(option) for option in options}

    def build(chosen: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in sorted(chosen):
            found = merge(table(key, values[key]), found)
        return found

    return keys.map(build)


def given_keys(values: Mapping[str, Any]) -> set[str]:
    return {option.key for option in LEAVES if _has(values, option.key)}


def _has(values: Mapping[str, Any], key: str) -> bool:
    head, _, rest = key.partition(".")
    return head in values and (not rest or _has(values[head], rest))


@given(file=tables(LEAVES), line=tables(LEAVES))
def test_the_command_line_wins_key_by_key(file: dict[str, Any], line: dict[str, Any]) -> None:
    # the same value in both would not show which of them won
    line = merge(line, {}) | ({"seed": 77} if "seed" in line else {})
    merged = merge(line, file)
    assert given_keys(merged) == given_keys(file) | given_keys(line)
    for key in given_keys(merged):
        assert look_up(merged, key) == look_up(line if key in given_keys(line) else file, key)
    config = to_config(PLAIN | merged)
    for option in LEAVES:
        if option.key not in given_keys(PLAIN | merged):
            assert option.value_in(config) == option.default


@given(values=tables(LEAVES))
def test_what_is_not_given_leaves_no_trace(values: dict[str, Any]) -> None:
    whole = validated(PLAIN | values, "test")
    assert whole == PLAIN | values
    assert values_of(filled(PackageConfig, whole)) == whole
    assert merge({}, values) == merge(values, {}) == values
