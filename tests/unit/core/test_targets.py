from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core import profiles
from edgeq.core.errors import UsageError
from edgeq.core.profiles import group_files, profile_files, profile_values
from edgeq.core.targets import (
    App,
    Audit,
    TargetGroup,
    accelerator,
    load_target,
    load_target_or_group,
    schemes_instead,
    verified_by,
)

SHIPPED = (
    "android-arm64-ort",
    "android-arm64-qnn-htp",
    "android-arm64-qnnpack",
    "android-arm64-xnnpack",
    "cortex-m-ethos-u55",
    "ios-arm64-xnnpack",
    "linux-arm64-ethos-u85",
    "linux-arm64-ort",
    "linux-arm64-qnnpack",
    "linux-arm64-xnnpack",
    "linux-x86_64-fbgemm",
    "linux-x86_64-ort",
    "linux-x86_64-x86",
    "linux-x86_64-xnnpack",
)
BODY = """
name = "mine"
description = "of my own"
platform = "android"
arch = "arm64"
runtime = "executorch"
backend = "xnnpack"
schemes = ["static-int8"]
[app]
runtimes = ["1.5"]
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_these_are_shipped() -> None:
    assert set(SHIPPED) <= set(profile_files())


@pytest.mark.parametrize("name", sorted(profile_files()))
def test_every_shipped_profile_loads(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    system = "" if target.platform == "bare-metal" else f"{target.platform}-"
    assert name == f"{system}{target.arch}-{target.backend}"
    assert set(target.audit) <= set(target.schemes)
    assert "static-int8" not in target.schemes or target.audit["static-int8"].int8_macs == 0.95
    assert target.audit[target.schemes[0]] != Audit()  # what is made without being asked for is held to something


@pytest.mark.parametrize(
    ("name", "how", "by_what"),
    [
        ("android-arm64-ort", "emulator", "CPU"),
        ("linux-arm64-qnnpack", "emulator", "CPU"),
        ("android-arm64-qnn-htp", "emulator", "Hexagon NPU"),
        ("ios-arm64-xnnpack", "runtime", "CPU"),  # no CPU model is named: this host's kernels run it
        ("linux-x86_64-x86", "runtime", "CPU"),
        ("linux-arm64-cuda", "stand-in", "NVIDIA GPU"),
        ("ios-arm64-coreml", "none", "Neural Engine, GPU or CPU"),
        ("cortex-m-ethos-u55", "reference", "Ethos-U55 NPU"),
        ("linux-arm64-ethos-u85", "reference", "Ethos-U85 NPU"),
    ],
)
def test_what_verifies_a_target(name: str, how: str, by_what: str) -> None:
    target = load_target(name)
    assert (verified_by(target), accelerator(target.backend)) == (how, by_what)


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine.toml", BODY)
    assert load_target(path).device.threads == 1
    monkeypatch.chdir(tmp_path)
    assert load_target("mine.toml") == load_target("./mine.toml") == load_target(path)


def test_extends_overlays_key_by_key(tmp_path: Path) -> None:
    base = load_target("android-arm64-xnnpack")
    text = 'extends = "android-arm64-xnnpack"\nname = "mine"\n'
    text += "[device]\nthreads = 4\n[audit.static-int8]\nint8_macs = 0.5\n"
    mine = load_target(write(tmp_path / "mine.toml", text))
    assert mine.extends == base.name
    assert (mine.device.threads, mine.device.cpu) == (4, base.device.cpu)
    assert (mine.audit["static-int8"].int8_macs, mine.audit["static-int8"].delegated_macs) == (0.5, 0.95)
    assert mine.audit["fp32"] == base.audit["fp32"]
    assert mine.app == base.app


def test_extends_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", BODY)
    path = write(tmp_path / "mine.toml", 'extends = "base.toml"\nname = "other"\n')
    assert (load_target(path).name, load_target(path).description) == ("other", "of my own")


def test_a_shipped_profile_may_extend_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"base": tmp_path / "base.toml", "mine": tmp_path / "mine.toml"}
    write(shipped["base"], BODY)
    write(shipped["mine"], 'extends = "base"\nname = "mine"\narch = "x86_64"\n')
    monkeypatch.setattr(profiles, "profile_files", lambda: shipped)
    values = profile_values("mine")
    assert (values["arch"], values["runtime"], values["schemes"]) == ("x86_64", "executorch", ["static-int8"])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_cycle_is_named(tmp_path: Path, length: int) -> None:
    for i in range(length):
        write(tmp_path / f"t{i}.toml", f'extends = "t{(i + 1) % length}.toml"\n')
    chain = " -> ".join(f"t{i % length}.toml" for i in range(length + 1))
    with pytest.raises(UsageError, match=f"cycle: {chain}"):
        load_target(str(tmp_path / "t0.toml"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BODY + "[device]\nthread = 2\n", r"unknown key 'device\.thread'\. Did you mean 'threads'\?"),
        ("descripton = 'x'\n" + BODY, r"unknown key 'descripton'\. Did you mean 'description'\?"),
        (BODY + "[audit.static-int8]\nint8_mac = 0.9\n", r"unknown key 'audit\.static-int8\.int8_mac'.*'int8_macs'"),
        (BODY.replace('"android"', '"symbian"'), "platform: .*'symbian'"),
        (BODY.replace('"xnnpack"', '"fbgemm"'), "runtime 'executorch' has no backend 'fbgemm'"),
        (BODY.replace('["1.5"]', "[]"), r"app\.runtimes"),
        (BODY.replace('["1.5"]', '["new"]'), r"app\.runtimes\.0"),
        (BODY.replace('"mine"', '"../mine"'), "name: "),
        (BODY.replace('["static-int8"]', '["int4"]'), r"schemes\.0"),
        (BODY + "[audit.static-int8]\nint8_macs = 1.5\n", "int8_macs"),
        (BODY + "[device]\nthreads = 0\n", r"device\.threads"),
        (BODY.replace('name = "mine"\n', ""), "name: Field required"),
        ("= 1", "not valid TOML"),
        ("extends = 3", "expected `extends` to be a target's name"),
        ('extends = "android-arm64-xnpack"', "Did you mean 'android-arm64-xnnpack'"),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_nearest(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path / "mine.toml", text)
    with pytest.raises(UsageError, match=why) as caught:
        load_target(path)
    assert path in caught.value.what or "unknown target" in caught.value.what


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ios-arm64-xnnpack'"):
        load_target("ios-arm64-xnpack")


@pytest.mark.parametrize("name", ["absent.toml", "no/such/file", "."])
def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        load_target(name)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("runtimes", "oldest"),
    [(("1.3", "1.5"), "1.3"), (("1.10", "1.9.2"), "1.9.2"), (("1.5", "1.5.1"), "1.5"), (("2.1.0",), "2.1.0")],
)
def test_the_oldest_runtime_is_that_wherever_it_stands(runtimes: tuple[str, ...], oldest: str) -> None:
    assert App(runtimes=runtimes).oldest == oldest


def test_another_profile_cannot_pass_for_a_shipped_one(tmp_path: Path) -> None:
    shipped = profile_files()["linux-x86_64-ort"]
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.read_text())
    assert load_target(str(mine)) == load_target("linux-x86_64-ort")  # a copy is what its name says
    mine.write_text(shipped.read_text().replace("int8_macs = 0.95", "int8_macs = 0.0"))
    with pytest.raises(UsageError, match="linux-x86_64-ort is the name of a shipped target") as raised:
        load_target(str(mine))
    assert 'extends = "linux-x86_64-ort"' in raised.value.fix


GROUP = """
name = "ours"
description = "what our boxes run"
candidates = ["linux-x86_64-ort", "mine.toml"]
"""


def test_a_target_may_stand_for_several(tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", 'extends = "linux-x86_64-openvino"\nname = "mine"\ndevice.vnni = true\n')
    group = load_target_or_group(write(tmp_path / "ours.toml", GROUP))
    assert isinstance(group, TargetGroup)
    assert [one.name for one in group.candidates] == ["linux-x86_64-ort", "mine"]
    assert (group.arch, group.candidates[1].device.vnni) == ("x86_64", True)
    with pytest.raises(UsageError, match="ours stands for several targets") as raised:
        load_target(str(tmp_path / "ours.toml"))
    assert raised.value.fix == "name one of them: linux-x86_64-ort, mine"


@pytest.mark.parametrize("name", sorted(group_files()))
def test_every_shipped_group_loads(name: str) -> None:
    group = load_target_or_group(name)
    assert isinstance(group, TargetGroup)
    assert group.name == name
    assert {one.name for one in group.candidates} <= set(profile_files())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"mine.toml"', '"linux-x86_64-ort"', "candidates must differ"),
        ('"mine.toml"', '"linux-arm64-ort"', "must have one architecture, but linux-arm64-ort is for arm64"),
        ('"mine.toml"', '"linux-x86_64-cuda"', "a Linux host's CPU, which linux-x86_64-cuda does not"),
        ('"mine.toml"', '"android-arm64-ort"', "a Linux host's CPU, which android-arm64-ort does not"),
        ('"mine.toml"', '"linux-x86_64-otr"', "Did you mean 'linux-x86_64-ort'"),
        ('"mine.toml"', "3", "expected `candidates` to be names of targets"),
        (', "mine.toml"', "", "candidates"),
        ("description", "extends = 'x'\ndescription", "unknown key 'extends'"),
        ('"ours"', '"linux-x86_64-fastest"', "linux-x86_64-fastest is the name of a shipped target"),
        ('"ours"', '"linux-x86_64-ort"', "linux-x86_64-ort is the name of a shipped target"),
    ],
)
def test_mistakes_of_a_group(tmp_path: Path, old: str, new: str, why: str) -> None:
    write(tmp_path / "mine.toml", 'extends = "linux-x86_64-openvino"\nname = "mine"\n')
    path = write(tmp_path / "ours.toml", GROUP.replace(old, new))
    with pytest.raises(UsageError, match=why):
        load_target_or_group(path)


NPU = (
    '[npu]\naccelerator = "ethos-u55-64"\nsystem_config = "Ethos_U55_High_End_Embedded"\nmemory_mode = "Shared_Sram"\n'
)


def test_an_npu_of_ones_own(tmp_path: Path) -> None:
    text = f'extends = "cortex-m-ethos-u55"\nname = "mine"\n{NPU}'
    npu = load_target(write(tmp_path / "mine.toml", text)).npu
    assert npu is not None
    assert npu.accelerator == "ethos-u55-64"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('extends = "linux-arm64-ethos-u85"\n' + NPU, "ethos-u55-64 is not an ethos-u85"),
        ('extends = "cortex-m-ethos-u55"\n' + NPU.replace("-64", "-65"), "accelerator"),
        ('extends = "android-arm64-xnnpack"\n' + NPU, "the table npu is for the backends ethos-u55 and ethos-u85"),
        ('extends = "cortex-m-ethos-u55"\nschemes = ["fp16"]\n', "Ethos-U computes in whole numbers"),
        ('extends = "android-arm64-xnnpack"\nschemes = ["static-a16w8"]\n', "static-a16w8 is for NPUs"),
    ],
)
def test_what_an_npu_and_its_schemes_must_be(tmp_path: Path, text: str, why: str) -> None:
    # keys of the file come before its tables
    with pytest.raises(UsageError, match=why):
        load_target(write(tmp_path / "mine.toml", f'name = "mine"\n{text}'))


@pytest.mark.parametrize(
    ("target", "scheme", "why", "instead"),
    [
        ("linux-x86_64-x86", "weight-only-int4", "only OpenVINO and ONNX Runtime have kernels", "weight-only-int8"),
        ("ios-arm64-coreml", "weight-only-int4", "only OpenVINO and ONNX Runtime have kernels", "weight-only-palette4"),
        ("android-arm64-xnnpack", "weight-only-int4", "only OpenVINO and ONNX Runtime have kernels", "8da4w"),
        ("linux-x86_64-openvino", "8da4w", "only XNNPACK has kernels for int4 weights", "weight-only-int4"),
        ("linux-x86_64-x86", "8da4w", "only XNNPACK has kernels for int4 weights", "weight-only-int8"),
        ("linux-x86_64-ort", "weight-only-palette4", "only Core ML has kernels for palettes", "weight-only-int4"),
        ("android-arm64-qnn-htp", "weight-only-int4", "only OpenVINO and ONNX Runtime have kernels", "static-a16w8"),
    ],
)
def test_a_scheme_without_kernels_is_refused_with_what_suits(target, scheme, why, instead):
    text = schemes_instead(load_target(target), scheme)
    assert why in text
    assert text.endswith(f"use --scheme {instead} on this target")
    assert "kernels" not in schemes_instead(load_target(target), "bf16")
