"""edgeq.toml with several models: what is shared, what is refused, and what `edgeq init` writes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.config.options import read_project
from edgeq.config.project_file import read_models, read_one, read_released
from edgeq.core.errors import UnsupportedError, UsageError

TWO = """
targets = ["linux-x86_64-x86"]
out = "bundles"
[limit]
size = "1MB"
[app]
limit.size = "10MB"
runtime_size.linux-x86_64.torchscript = "5MB"
[[model]]
name = "one"
source = "digits"
[[model]]
name = "two"
source = "sub/net.py:model"
version = "7"
targets = ["linux-x86_64-fbgemm", "android-arm64-qnnpack"]
schemes = ["fp32"]
data.calibration = "train"
limit.download = "2MB"
"""


@pytest.fixture
def write(tmp_path: Path):
    def call(text: str) -> Path:
        path = tmp_path / "edgeq.toml"
        path.write_text(text)
        return path

    return call


def test_an_entry_wins_over_what_stands_above(write, tmp_path):
    found = read_models(write(TWO), ())
    one, two = (model for model in found.models)
    assert found.names == ("one", "two")
    assert found.out == tmp_path / "bundles" == one.out == two.out
    assert (one.name, one.source, one.model_version) == ("one", "digits", "1")
    assert [target.name for target in one.targets] == ["linux-x86_64-x86"]
    assert one.gates.limits == (("size", 1e6),)
    assert (two.source, two.model_version, two.schemes) == (f"{tmp_path}/sub/net.py:model", "7", ("fp32",))
    assert [target.name for target in two.targets] == ["linux-x86_64-fbgemm", "android-arm64-qnnpack"]
    assert two.gates.limits == (("size", 1e6), ("download", 2e6))
    assert two.data.calibration == f"{tmp_path}/train"
    assert found.app.size_bytes == 10**7
    assert found.app.runtime_bytes == ((("torchscript", "linux-x86_64"), 5 * 10**6),)


def test_models_are_chosen_by_name(write):
    path = write(TWO)
    assert [model.name for model in read_models(path, ("two",), {"cache": False}).models] == ["two"]
    assert not read_models(path, (), {"cache": False}).models[0].cache
    with pytest.raises(UsageError, match=r"no model 'tow'.*Did you mean 'two'"):
        read_models(path, ("tow",))


def test_the_command_line_says_where_bundles_go_from_the_current_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(TWO)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    found = read_models(Path("../edgeq.toml"), (), {"out": "elsewhere"})
    assert found.out == Path("elsewhere")
    assert {model.out for model in found.models} == {Path("elsewhere")}
    # without one, the page of the whole lies where the bundles do, as of `edgeq package`
    write(TWO.replace('out = "bundles"\n', ""))
    found = read_models(Path("../edgeq.toml"), ())
    assert {found.out} == {model.out for model in found.models} == {Path("out")}


def test_a_file_of_one_model_is_a_project_too(write):
    path = write('model = "digits"\nname = "mine"\ntargets = ["linux-x86_64-x86"]\n[app]\nlimit.size = "1MB"\n')
    (only,) = read_models(path, ()).models
    assert (only.source, only.name) == ("digits", "mine")
    assert read_project(path)["model"] == "digits"


def test_package_sends_a_file_of_several_to_build(write):
    with pytest.raises(UsageError, match=r"has \[\[model\]\] entries"):
        read_project(write(TWO))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "two"', 'name = "One"', "two models are named 'one' and 'One'"),
        ('name = "two"', 'name = "one"', "two models are named 'one'"),
        ('size = "1MB"', 'size = "1MX"', r"limit size: unknown unit 'MX'"),
        ('limit.size = "10MB"', 'limit.size = "10ms"', r"app.limit.size: unknown unit 'ms'"),
        ('limit.size = "10MB"', 'limit.sise = "10MB"', "unknown key 'app.limit.sise'. Did you mean 'size'"),
        ('version = "7"', 'verson = "7"', "model 'two'.*unknown key 'verson'. Did you mean 'version'"),
        ('source = "digits"', 'model = "digits"', "model 'one'.*unknown key 'model'"),
        ('source = "digits"', "", "model 'one': source: Field required"),
        ('version = "7"', 'out = "x"', "model 'two'.*'out' applies to the whole file"),
        (
            'schemes = ["fp32"]',
            'schemes = ["fp33"]',
            "model 'two': schemes.0: unknown value 'fp33'. Did you mean 'fp32'",
        ),
        ('targets = ["linux-x86_64-fbgemm"', 'targets = ["linux-fbgem"', "model 'two'.*unknown target"),
        ("[[model]]", "[[modell]]", "unknown key 'modell'. Did you mean 'model'"),
        ("torchscript = ", "torchscrip = ", r"app.runtime_size.linux-x86_64.torchscrip"),
        (
            'limit.size = "10MB"',
            'runtimes.torchscript = ["two"]',
            "app.runtimes.torchscript: runtimes.0: String should",
        ),
        ('limit.size = "10MB"', "runtimes.torchscript = []", "app.runtimes.torchscript: List should have at least 1"),
        ('version = "7"', 'app.limit.size = "1MB"', "model 'two'.*'app' applies to the whole file"),
    ],
)
def test_what_is_wrong_is_named(write, old, new, told):
    assert old in TWO
    with pytest.raises(UsageError, match=told):
        read_models(write(TWO.replace(old, new)), ())


def test_the_runtimes_of_the_app_take_the_place_of_the_targets_own(write):
    text = TWO.replace("[app]\n", '[app]\nruntimes.torchscript = ["1.13.1", "2.1.0"]\n')
    one, two = (model for model in read_models(write(text), ()).models)
    assert {target.app.runtimes for target in (*one.targets, *two.targets)} == {("1.13.1", "2.1.0")}


def test_a_release_reads_what_the_file_says_of_its_model(write, tmp_path):
    path = write(TWO.replace("[app]\n", '[app]\nruntimes.executorch = ["1.5"]\n'))
    found = read_released(path, ("two",))
    assert (found["limit"]["size"], found["limit"]["download"]) == ("1MB", "2MB")
    assert found["app"]["runtimes"] == {"executorch": ["1.5"]}
    assert found["data"]["calibration"] == f"{tmp_path}/train"
    with pytest.raises(UsageError, match=r"no model 'three'.*"):
        read_released(path, ("three",))
    with pytest.raises(UsageError, match="but the release has bundles of several models: one, two"):
        read_released(path, ("one", "two"))


def test_a_release_reads_a_file_of_one_model(write):
    path = write('model = "digits"\n[app]\nruntimes.executorch = ["1.5"]\nlimit.size = "1MB"\n')
    assert read_released(path, ("any",))["app"]["runtimes"] == {"executorch": ["1.5"]}


def test_a_cycle_of_targets_is_named(write, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\ndescription = "x"\nextends = "{other}.toml"\n')
    text = TWO.replace('targets = ["linux-x86_64-x86"]', 'targets = ["a.toml"]')
    with pytest.raises(UsageError, match=r"extend each other in a cycle: a.toml -> b.toml -> a.toml"):
        read_models(write(text), ())


def test_an_unsupported_scheme_keeps_its_code(write):
    text = TWO.replace('schemes = ["fp32"]', 'schemes = ["pretrained"]')
    path = write(text.replace('"linux-x86_64-fbgemm"', '"linux-x86_64-xnnpack"'))
    with pytest.raises(UnsupportedError, match="model 'two'"):
        read_models(path, ())


def test_no_file_and_no_models(write, tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_models(tmp_path / "nothing.toml", ())
    with pytest.raises(UsageError, match="has no models"):
        read_models(write("model = []\n"), ())


def test_package_takes_the_entry_of_its_source_or_what_stands_above(write, tmp_path):
    path = write(TWO)
    two = read_one(path, f"{tmp_path}/sub/../sub/net.py:model")
    assert (two["name"], two["schemes"]) == ("two", ["fp32"])
    other = read_one(path, "torchvision:resnet18")
    assert (other["limit"], other["out"]) == ({"size": "1MB"}, str(tmp_path / "bundles"))
    assert "name" not in other
    with pytest.raises(UsageError, match="'two' is the name of a") as named:
        read_one(path, "two")
    assert named.value.fix == "run `edgeq build two`"
    with pytest.raises(UsageError, match=r"has \[\[model\]\] entries"):
        read_one(path, None)
    twice = write(TWO + '[[model]]\nname = "three"\nsource = "digits"\n')
    with pytest.raises(UsageError, match=r"several .* with the source digits: one, three"):
        read_one(twice, "digits")
