"""What a device is, and which release is for it."""

from __future__ import annotations

from pydantic import ValidationError

from edgeq.deliver.ota.facts import BundleEntry, BundleFacts, Index
from edgeq.deliver.ota.state import DeviceFacts
from edgeq.errors import IntegrityError, UnsupportedError, UsageError


def check_device(known: DeviceFacts | None, *, device_id: str, model: str | None, target: str | None) -> None:
    """Refuse a store that is another device's.

    Raises:
        IntegrityError: it is.
    """
    if known is None:
        return
    for name, told in (("device_id", device_id), ("model", model), ("target", target)):
        had = getattr(known, name)
        if told is not None and told != had:
            what = f"wrong device: the store is for {name.replace('_', ' ')} {had}, not {told}"
            raise IntegrityError(what, "give each device, and each model, a store of its own")


def described(
    known: DeviceFacts | None,
    index: Index,
    *,
    device_id: str,
    model: str | None,
    target: str | None,
    runtime: str | None,
) -> DeviceFacts:
    """Return what the device is; where the channel leaves no choice it need not be told.

    Raises:
        UsageError: a name that is none, or a choice that has to be told.
        UnsupportedError: the channel has nothing at all.
    """
    if runtime is not None and _version(runtime) is None:
        what = f"--runtime {runtime!r} is no version, and any release would seem to be for it"
        raise UsageError(what, "write it with a full stop, such as 1.5")
    if known is not None:
        return known.model_copy(update={"runtime": runtime}) if runtime else known
    offered = [(one.facts.model, one.facts.target) for one in index.bundles]
    # where nothing fits what was told, `choose` says what is wrong with it
    models = sorted({one for one, on in offered if on == target} or {one for one, _ in offered})
    targets = sorted({on for one, on in offered if one == model} or {on for _, on in offered})
    try:
        return DeviceFacts(
            device_id=device_id,
            model=model or _only(models, "model"),
            target=target or _only(targets, "target"),
            runtime=runtime,
        )
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        raise UsageError(what, "use letters, digits, and any of . _ : -") from err


def _only(names: list[str], what: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnsupportedError(
            "the channel has no release that fits", f"check --model and --target, or release a {what}"
        )
    raise UsageError(f"the channel has several {what}s: {', '.join(names[:8])}", f"say which with --{what}")


def choose(index: Index, device: DeviceFacts) -> BundleEntry:
    """Return the newest release for a device.

    Raises:
        UnsupportedError: none is for its model, target, runtime or id; the message says which of them.
    """
    bundles = [one for one in index.bundles if one.facts.model == device.model]
    if not bundles:
        known = ", ".join(sorted({one.facts.model for one in index.bundles})) or "none"
        raise UnsupportedError(f"the channel has no model {device.model}", f"its models: {known}")
    fitting = [one for one in bundles if one.facts.target == device.target]
    if not fitting:
        known = ", ".join(sorted({f"{one.facts.target} ({one.facts.arch})" for one in bundles}))
        what = f"wrong target or ABI: the channel has nothing for {device.target}"
        raise UnsupportedError(what, f"its targets: {known}")
    offered = [one for one in fitting if not one.facts.withdrawn]
    addressed = [one for one in offered if not one.facts.devices or device.device_id in one.facts.devices]
    if not addressed:
        what = f"wrong device: no release of the channel is for {device.device_id}"
        raise UnsupportedError(what, "release one for all devices, or name this one with --device")
    newest = addressed[0]
    needs = _needs(newest.facts)
    if device.runtime is not None and needs and (_version(device.runtime) or needs) < needs:
        what = (
            f"wrong runtime: release {newest.facts.release} was written by {newest.facts.runtime}"
            f" {newest.facts.exported_with}, for {' and '.join(newest.facts.runtimes) or 'no older one'};"
            f" this device has {device.runtime}"
        )
        raise UnsupportedError(what, "update the app first, or release one for its runtime")
    return newest


def _needs(facts: BundleFacts) -> tuple[int, int] | None:
    """Return the oldest runtime that loads a release."""
    # by bytecode or opset, which a newer writer may keep old: it was released for these
    if facts.runtime in ("torchscript", "onnx"):
        return min(filter(None, map(_version, facts.runtimes)), default=None)
    return _version(facts.exported_with)


def _version(text: str) -> tuple[int, int] | None:
    """Return (major, minor): an artifact runs on the runtime that wrote it, or on a newer one."""
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal() else None
