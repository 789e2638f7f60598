"""Target profiles: the format of `targets/*.toml` and of the user's own files, and how they are found."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.core.errors import UsageError
from edgeq.core.profiles import group_files, profile_files
from edgeq.core.runtimes import BACKENDS, ETHOS_U, BackendName, RuntimeName
from edgeq.core.schema import explain, find_file, read_toml
from edgeq.core.schemes import A8W4_SCHEME, INT4_SCHEME, PALETTE_SCHEME, SchemeName

FileFormat = Literal["onnx", "ort"]

Share = Annotated[float, Field(ge=0, le=1)]

# delegates whose artifacts run in one operating system only, by `platform.system()`, and are made in others too
_NO_GPU = ("", "no emulator has GPU kernels")  # this host's GPU, or its CPU in the place of one, runs them

NPU = "qnn-htp"  # emulated by Qualcomm's own emulator, and not by QEMU

_REFERENCE = ("", "no emulator of Ethos-U comes from a package registry; the TOSA reference model stands in for it")

_WHOLE_NUMBERS = frozenset({"static-int8", "static-a16w8"})  # schemes of NPUs without float arithmetic

_ONLY_IN: dict[str, tuple[str, str]] = {
    "coreml": ("Darwin", "Core ML runs on Apple's devices only"),
    "vulkan": ("Android", "ExecuTorch's wheel has no Vulkan runtime"),
    "cuda": _NO_GPU,
    "cuda-torchscript": _NO_GPU,
    **dict.fromkeys(ETHOS_U, _REFERENCE),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Audit(_Strict):
    """The shares of multiply-accumulates that a scheme must reach."""

    int8_macs: Share = Field(default=0.0, description="share of MACs in int8 kernels, by the runtime's own profile")
    int8_linear_macs: Share = Field(default=0.0, description="the same among linear and recurrent layers only")
    int8_gain: Share = Field(default=0.0, description="share of all MACs in int8 kernels or of the constants in int8")
    half_macs: Share = Field(default=0.0, description="share of MACs in half-precision kernels, by the same profile")
    int8_weights: Share = Field(default=0.0, description="share of the constants that the artifact stores in int8")
    int4_weights: Share = Field(
        default=0.0,
        description="the same in int4; every layer that was to be stored so must be (OpenVINO, ONNX Runtime, XNNPACK)",
    )
    palette_weights: Share = Field(
        default=0.0, description="the same as indices of 4 bits into a palette of 16 values (Core ML)"
    )
    half_weights: Share = Field(default=0.0, description="the same in half precision, float16 or bfloat16")
    delegated_macs: Share = Field(default=0.0, description="share of MACs that the delegate took (ExecuTorch)")


class App(_Strict):
    """The app builds in the field."""

    runtimes: tuple[Annotated[str, Field(pattern=r"^\d+\.\d+(\.\d+)?$")], ...] = Field(
        min_length=1, description="runtime versions that the app builds in the field carry, oldest first"
    )
    adds: str = Field(default="", description="what an app or a board must install beside the artifact")
    build: Literal["full", "mobile"] = Field(
        default="full",
        description=(
            "build of ONNX Runtime: mobile is onnxruntime-mobile, with few operators and .ort files only; "
            "its last version is 1.18"
        ),
    )

    @property
    def oldest(self) -> str:
        """The oldest of the runtimes, at any position of the list; of equal ones (1.5 and 1.5.1) the first."""
        return min(self.runtimes, key=lambda text: tuple(int(part) for part in text.split(".")[:2]))


class Device(_Strict):
    """The emulated CPU models, and the settings that the app takes from the manifest."""

    cpu: tuple[str, ...] = Field(default=(), description="CPU models to emulate; of the backend qnn-htp, SoCs")
    threads: int = Field(default=1, ge=1, le=64, description="threads that the app should use")
    vnni: bool = Field(
        default=True,
        description=(
            "false: x86 CPUs without VNNI also run it, and their int8 sums overflow, so weights for ONNX Runtime and "
            "OpenVINO use 7 bits"
        ),
    )


class Npu(_Strict):
    """The Ethos-U that vela compiles for; the names are those of vela's options and of its `Arm/vela.ini`."""

    accelerator: str = Field(
        pattern=r"^ethos-u(55-(32|64|128|256)|85-(128|256|512|1024|2048))$",
        description="the NPU with its multipliers, such as ethos-u55-128",
    )
    system_config: str = Field(
        pattern=r"^\w+$", description="clock and memories of the chip, such as Ethos_U55_High_End_Embedded"
    )
    memory_mode: str = Field(pattern=r"^\w+$", description="Shared_Sram, Sram_Only or Dedicated_Sram")


class TargetProfile(_Strict):
    """A target profile. Limits of size, latency and accuracy belong to the project, not here."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    description: str
    extends: str | None = Field(default=None, description="a target whose values this one inherits")
    platform: Literal["android", "ios", "linux", "bare-metal"]
    arch: Literal["arm64", "x86_64", "cortex-m"]
    runtime: RuntimeName
    backend: BackendName
    file_format: FileFormat = Field(
        default="onnx", description="format of ONNX Runtime's artifacts; ort: for its reduced mobile builds"
    )
    schemes: tuple[SchemeName, ...] = Field(min_length=1, description="first is the default")
    audit: dict[SchemeName, Audit] = Field(default_factory=dict)
    app: App
    device: Device = Device()
    npu: Npu | None = Field(default=None, description="what the backends ethos-u55 and ethos-u85 compile for")

    @property
    def reduce_range(self) -> bool:
        """Whether int8 weights keep to seven bits: on x86 without VNNI, 16-bit sums of two products overflow."""
        return self.runtime in ("onnx", "openvino") and not self.device.vnni

    def model_post_init(self, _context: object) -> None:
        """Check conditions that involve several fields."""
        backends = BACKENDS[self.runtime]
        if self.backend not in backends:
            raise ValueError(
                f"runtime {self.runtime!r} has no backend {self.backend!r}, expected one of {', '.join(backends)}"
            )
        if self.runtime != "onnx" and (self.file_format != "onnx" or self.app.build != "full"):
            raise ValueError("file_format and app.build need the runtime onnx")
        if (self.npu is not None) != (self.backend in ETHOS_U):
            raise ValueError(f"the table npu is for the backends {' and '.join(ETHOS_U)}, and these need it")
        if self.npu is not None and not self.npu.accelerator.startswith(f"{self.backend}-"):
            raise ValueError(f"npu.accelerator {self.npu.accelerator} is not an {self.backend}")
        if self.backend in ETHOS_U and not _WHOLE_NUMBERS.issuperset(self.schemes):
            raise ValueError(f"Ethos-U computes in whole numbers: its schemes are {', '.join(sorted(_WHOLE_NUMBERS))}")
        if self.backend not in (*ETHOS_U, NPU) and "static-a16w8" in self.schemes:
            raise ValueError(f"scheme static-a16w8 is for NPUs: the backends {', '.join((NPU, *ETHOS_U))}")
        if self.file_format == "ort" and "fp16" in self.schemes:
            raise ValueError(
                "scheme fp16 needs file_format = 'onnx': an .ort file contains the float32 casts of "
                "the host that wrote it"
            )


# schemes that few runtimes have kernels for, and which these are
_KERNELS_IN: dict[str, str] = {
    A8W4_SCHEME: "only XNNPACK has kernels for int4 weights beside dynamic int8 activations here",
    INT4_SCHEME: "only OpenVINO and ONNX Runtime have kernels for int4 weights here",
    PALETTE_SCHEME: "only Core ML has kernels for palettes",
}

# what a target may have in their place, the smallest first
_INSTEAD: tuple[SchemeName, ...] = (
    *(PALETTE_SCHEME, A8W4_SCHEME, INT4_SCHEME),
    *("weight-only-int8", "dynamic-int8", "static-int8", "fp16"),
)


def schemes_instead(target: TargetProfile, scheme: str) -> str:
    """Return, for a message about a scheme that a target does not have, what it has, and which suits in its place."""
    text = f"its schemes: {', '.join(target.schemes)}"
    if scheme in _KERNELS_IN:
        instead = next((name for name in _INSTEAD if name in target.schemes), target.schemes[0])
        text += f"; {_KERNELS_IN[scheme]}, use --scheme {instead} on this target"
    return text


class TargetGroup(_Strict):
    """A target that stands for several others: the fastest of them on the machine that packages."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    description: str
    candidates: tuple[TargetProfile, ...] = Field(
        min_length=2, description="targets, by name or .toml file; of equally fast and large ones, the first is taken"
    )

    @property
    def arch(self) -> str:
        """The architecture of the hosts that can time all candidates."""
        return self.candidates[0].arch

    def model_post_init(self, _context: object) -> None:
        """Check that one machine can run all candidates, and that results tell them apart."""
        names = [one.name for one in self.candidates]
        if len({*names}) < len(names):
            raise ValueError(f"candidates must differ, got {', '.join(names)}")
        for one in self.candidates:
            if one.platform != "linux" or one.runtime == "cuda":
                raise ValueError(f"candidates must run on a Linux host's CPU, which {one.name} does not")
            if one.arch != self.arch:
                raise ValueError(f"candidates must have one architecture, but {one.name} is for {one.arch}")


# what does the work; where that is not one thing, the runtime chooses
_ACCELERATORS = {
    "coreml": "Neural Engine, GPU or CPU",
    "vulkan": "GPU",
    "cuda": "NVIDIA GPU",
    "cuda-torchscript": "NVIDIA GPU",
    NPU: "Hexagon NPU",
    "ethos-u55": "Ethos-U55 NPU",
    "ethos-u85": "Ethos-U85 NPU",
}

VerifiedBy = Literal["emulator", "runtime", "stand-in", "reference", "none"]


def accelerator(backend: str) -> str:
    """Return what does the work of a backend's artifacts."""
    return _ACCELERATORS.get(backend, "CPU")


def verified_by(target: TargetProfile) -> VerifiedBy:
    """Return what runs a target's artifacts before they ship, on a Linux host without a GPU.

    `emulator`: the device's own kernels, emulated by QEMU (an NPU by its vendor's emulator), and this host's.
    `runtime`: its runtime with this host's kernels.
    `stand-in`: its runtime on this host's CPU, in place of a GPU. `reference`: the reference model of the language that
    the NPU's compiler takes. `none`: only the converted graph is judged.
    """
    if target.backend in ETHOS_U:
        return "reference"
    system, _ = _ONLY_IN.get(target.backend, ("Linux", ""))
    if system not in ("", "Linux"):
        return "none"
    if not system:
        return "stand-in"
    return "emulator" if target.arch == "arm64" and target.device.cpu else "runtime"


def why_not_run(backend: str) -> str:
    """Return why this host cannot run a backend's artifacts; "" where it can."""
    system, why = _ONLY_IN.get(backend, ("", ""))
    return why if system and platform.system() != system else ""


# backends whose artifacts have one size for each input
_FIXED_SIZES: dict[str, str] = {
    "coreml": "no Core ML runtime runs here that could verify other sizes",
    "vulkan": "no Vulkan runtime runs here that could verify other sizes",
    NPU: "the NPU's compiler takes fixed sizes only",
    "litert": "edgeq converts one size for each artifact there",
    "cuda": "edgeq compiles one size for each artifact there",
    "cuda-torchscript": "edgeq compiles one size for each artifact there",
    **dict.fromkeys(ETHOS_U, "vela compiles fixed sizes only"),
}


def why_fixed_sizes(backend: str) -> str:
    """Return why a backend's inputs have fixed sizes; "" where sizes may vary."""
    return _FIXED_SIZES.get(backend, "")


def why_not_emulated(backend: str) -> str:
    """Return why a backend's artifacts cannot be emulated on any host; "" where they can."""
    return _ONLY_IN.get(backend, ("", ""))[1]


def load_target(name_or_path: str) -> TargetProfile:
    """Return the profile of a shipped name or of a user's own TOML file.

    Raises:
        UsageError: an unknown name (the nearest is offered), an unreadable file, an unknown key or value, a file with
            the name of a shipped target that differs from it, or a target that stands for several.
    """
    found = load_target_or_group(name_or_path)
    if isinstance(found, TargetGroup):
        what = f"{found.name} stands for several targets, but one is needed here"
        raise UsageError(what, f"name one of them: {', '.join(one.name for one in found.candidates)}")
    return found


def load_target_or_group(name_or_path: str) -> TargetProfile | TargetGroup:
    """Return what a shipped name or a user's own TOML file stands for; raises a UsageError, as `load_target`."""
    path = find_file(name_or_path, profile_files() | group_files(), "target")
    data = read_toml(path)
    if "candidates" not in data:
        return _loaded(name_or_path)
    names = data["candidates"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: expected `candidates` to be names of targets, got {names!r}", "write a list of them")
    own = name_or_path in group_files()
    candidates = [_loaded(name, None if own else path.parent) for name in names]
    try:
        group = TargetGroup.model_validate(data | {"candidates": candidates})
    except ValidationError as err:
        raise explain(err, name_or_path, TargetGroup) from err
    shipped = profile_files() | group_files()
    if not own and group.name in shipped and group != load_target_or_group(group.name):
        what = f"{name_or_path}: {group.name} is the name of a shipped target, which has other values"
        raise UsageError(what, "give it a name of its own")
    return group


def _loaded(name_or_path: str, beside: Path | None = None) -> TargetProfile:
    profile = _validated(_merged(name_or_path, (), beside), name_or_path)
    # a bundle says by name what it was judged as: another profile under a shipped name would pass for it
    if profile.name in profile_files() and profile.name != name_or_path and profile != load_target(profile.name):
        what = f"{name_or_path}: {profile.name} is the name of a shipped target, which has other values"
        raise UsageError(what, f'give it a name of its own, and `extends = "{profile.name}"` for what they share')
    return profile


def _merged(name_or_path: str, seen: tuple[str, ...], beside: Path | None = None) -> dict[str, Any]:
    """Read a profile with what it extends; its own keys win, tables are merged key by key."""
    path = find_file(name_or_path, profile_files(), "target", beside)
    if str(path) in seen:
        chain = " -> ".join(Path(part).name for part in (*seen, str(path)))
        raise UsageError(f"targets extend each other in a cycle: {chain}", "remove one `extends`")
    data = read_toml(path)
    parent = data.get("extends")
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise UsageError(f"{path}: expected `extends` to be a target's name, got {parent!r}", "write a string")
    return overlay(_merged(parent, (*seen, str(path)), path.parent), data)


def overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `top` over it; tables that both have are merged key by key."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _validated(data: dict[str, Any], origin: str) -> TargetProfile:
    try:
        return TargetProfile.model_validate(data)
    except ValidationError as err:
        raise explain(err, origin, TargetProfile) from err
