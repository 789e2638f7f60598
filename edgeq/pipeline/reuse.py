"""Taking over the shipped model's scales and zero points: what is needed of its bundle, and what came of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import QParams, Reuse
from edgeq.errors import UnsupportedError, UsageError
from edgeq.job import Job
from edgeq.scheme import NEEDS_CALIBRATION, NEEDS_SEARCH

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.maker import Maker
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product, Recipe

_OPTION = "--reuse-qparams-from"
_SCHEMES = NEEDS_CALIBRATION - NEEDS_SEARCH  # a search chooses other layers each time, and so other tensors


def check_reuse(job: Job) -> None:
    """Check before a long run that the shipped bundle is one for every cell of the job.

    Raises:
        UsageError: it is no bundle, has no report of its own, or is of another runtime, backend or scheme.
        UnsupportedError: its scheme has no ranges to reuse.
        IntegrityError: its files are not those that it lists.
    """
    if job.reuse_qparams_from is None:
        return
    bundle, _ = _shipped(job.reuse_qparams_from)
    manifest, target = bundle.manifest, bundle.manifest.target
    has = (target.runtime, target.backend, manifest.scheme)
    for profile in job.targets:
        for scheme in job.schemes_of(profile):
            if scheme not in _SCHEMES:
                what = f"{_OPTION} is for {' and '.join(sorted(_SCHEMES))}, and this run has {scheme}"
                raise UnsupportedError(what, "leave it out, or give --scheme")
            if (profile.runtime, profile.backend, scheme) != has:
                what = f"{_OPTION}: {job.reuse_qparams_from} is {' '.join(has)}"
                what += f", and this run has {profile.runtime} {profile.backend} {scheme}"
                raise UsageError(what, "package each target with its own shipped bundle, in a run of its own")


def shipped_qparams(folder: Path) -> tuple[QParams, ...]:
    """Return the scales and zero points that a bundle was made with; raises as `check_reuse`."""
    return _shipped(folder)[1]


def reusing_product(
    job: Job, maker: Maker, prepared: Prepared, recipe: Recipe, label: str, *, emulated: bool
) -> Product:
    """Make the artifact of a recipe; where a shipped model's ranges are reused, that without them too, to compare.

    Args:
        job: names the shipped model's bundle, or none.
        maker: has products left for both.
        prepared: the model and its data.
        recipe: what to make.
        label: for progress, in words.
        emulated: whether a device's kernels are to run a part of the samples afterwards.
    """
    product = maker.product(prepared, recipe, label, emulated=emulated)
    if job.reuse_qparams_from is None:
        return product
    without = dataclasses.replace(recipe, fresh=True)
    own = maker.product(prepared, without, f"{label}, all ranges new", emulated=False)
    return dataclasses.replace(product, reuse=_facts(job.reuse_qparams_from, product, own))


def _facts(folder: Path, product: Product, own: Product) -> Reuse:
    from edgeq.deliver.ota.patch import make_patch

    bundle, _ = _shipped(folder)
    before = bundle.artifact.read_bytes()
    patches = [len(make_patch(before, one.lowered.path.read_bytes()).data) for one in (product, own)]
    return Reuse(
        shipped=bundle.digest,
        tensors=len(product.qparams),
        fresh=product.fresh,
        patch_bytes=patches[0],
        patch_bytes_without=patches[1],
        fidelity_without=own.verified.fidelity,
    )


def _shipped(folder: Path) -> tuple[Bundle, tuple[QParams, ...]]:
    from edgeq.bundle.reader import read_bundle
    from edgeq.bundle.report import read_report

    bundle, row = read_bundle(folder), read_report(folder)
    fix = "give the folder that `edgeq package` wrote for the shipped model, with its report.json"
    if row.digest != bundle.digest:
        raise UsageError(f"{folder / 'report.json'} is of another bundle than the one it lies in", fix)
    if not row.qparams:
        what = f"{folder} holds no scales and zero points: an older edgeq made it, or a scheme without them"
        raise UsageError(what, fix)
    return bundle, row.qparams
