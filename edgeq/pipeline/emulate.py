"""The emulated part of a run: which targets have a device, which machines stand for it, and what came of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgeq.artifacts import Emulation, VerifyReport
from edgeq.job import DeviceOptions, Progress
from edgeq.verify.emulate.wanted import not_emulated, wants_emulation

if TYPE_CHECKING:
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product
    from edgeq.target import TargetProfile
    from edgeq.verify.emulate.selftest import Machine


def no_sdk(runtime: str, versions: tuple[str, ...]) -> Emulation:
    """Return the report of a target none of whose runtimes can be had for a computer."""
    told = ", ".join(versions)
    problem = f"no ARM64 wheel is known for {runtime} {told}: the device's runtime cannot be run here"
    return Emulation(emulator="none", runs=(), problem=problem, is_unmeasured=True)


def machines(runtime: str, versions: tuple[str, ...], cpus: tuple[str, ...], progress: Progress) -> tuple[Machine, ...]:
    """Return each runtime version that can be had on each CPU model, installed and self-tested.

    On an ARM64 host the runtimes run natively, and the CPU models stand back.

    Raises:
        UsageError: an unknown CPU.
        UnsupportedError: a CPU that QEMU emulates wrongly, or not at all.
        EnvironmentProblem: QEMU, the compiler or the network is missing, or the self-test fails.
        IntegrityError: a wheel is not the one that is pinned.
    """
    from edgeq.verify.emulate.build import ensure_installed
    from edgeq.verify.emulate.cpus import find_cpu
    from edgeq.verify.emulate.runtimes import find_wheels, is_native
    from edgeq.verify.emulate.selftest import Machine, ensure_tested

    wheels, _ = find_wheels(runtime, versions)
    models = (None,) if is_native() else tuple(find_cpu(name) for name in cpus)
    installed = [ensure_installed(wheel, progress) for wheel in wheels]
    found = tuple(Machine(runtime=one, cpu=cpu) for one in installed for cpu in models)
    ensure_tested(found, progress)
    return found


class Emulator:
    """Runs the products of one job on their devices' kernels; targets with equal devices share a run."""

    def __init__(self, options: DeviceOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        # each with the product that it was made from: alive, so that no later product can have its id
        self._done: dict[tuple[int, tuple[Machine, ...], tuple[str, ...]], tuple[Product, Product]] = {}
        self._machines: dict[tuple[str, tuple[str, ...], tuple[str, ...]], tuple[Machine, ...]] = {}

    def prepare(self, targets: tuple[TargetProfile, ...]) -> None:
        """Install and self-test what the targets need, before anything slow starts.

        Raises:
            EdgeqError: as `machines`.
        """
        for target in targets:
            if wants_emulation(target, self._options):
                self._machines_of(target)

    def product(self, prepared: Prepared, product: Product, target: TargetProfile, scheme: str, label: str) -> Product:
        """Return the product with what the target's device made of it.

        Raises:
            EdgeqError: as `verify.emulate.run.emulate`.
        """
        reason = not_emulated(target, self._options)
        if reason:
            return _with(product, not_emulated=reason)
        if not wants_emulation(target, self._options):
            return product
        found = self._machines_of(target)
        if not found:
            return _with(product, emulation=no_sdk(target.runtime, target.app.runtimes))
        key = (id(product), found, target.app.runtimes)
        if key not in self._done:
            made = self._emulated(prepared, product, found, scheme, label)
            self._done[key] = (product, _without_wheel(made, target))
        return self._done[key][1]

    def _machines_of(self, target: TargetProfile) -> tuple[Machine, ...]:
        cpus = self._options.cpu or target.device.cpu
        key = (target.runtime, target.app.runtimes, cpus)
        if key not in self._machines:
            self._machines[key] = machines(*key, self._progress)
        return self._machines[key]

    def _emulated(
        self, prepared: Prepared, product: Product, found: tuple[Machine, ...], scheme: str, label: str
    ) -> Product:
        from edgeq.verify.emulate.run import EmulateSpec, emulate
        from edgeq.verify.emulate.selftest import emulator_of
        from edgeq.verify.golden import golden_set

        spec = EmulateSpec(
            artifact=product.lowered.path,
            machines=found,
            emulator=emulator_of(found),
            observed=product.observed,
            output_steps=product.output_steps,
            metric=prepared.metric,
            labelled=prepared.is_evaluation and (prepared.samples.labelled or prepared.metric is not None),
            timeout_s=self._options.timeout_s,
            progress=self._progress,
            label=label,
        )
        emulated = emulate(spec)
        golden = product.golden
        if emulated.golden:
            golden = golden_set(
                emulated.golden[0], product.output_steps, scheme=scheme, made_on=emulated.report.runs[0].cpu
            )
        return dataclasses.replace(_with(product, emulation=emulated.report), golden=golden)


def _without_wheel(product: Product, target: TargetProfile) -> Product:
    """Note the runtimes in the field that could not be run."""
    from edgeq.verify.emulate.runtimes import find_wheels

    emulation = product.verified.emulation
    _, missing = find_wheels(target.runtime, target.app.runtimes)
    if emulation is None or not missing:
        return product
    return _with(product, emulation=dataclasses.replace(emulation, without_wheel=missing))


def _with(product: Product, *, emulation: Emulation | None = None, not_emulated: str = "") -> Product:
    verified: VerifyReport = dataclasses.replace(product.verified, emulation=emulation, not_emulated=not_emulated)
    return dataclasses.replace(product, verified=verified)
