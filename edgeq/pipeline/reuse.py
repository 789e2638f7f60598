"""Taking over the shipped model's scales, zero points and int8 values: what its bundle gives, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import QParams, Reuse
from edgeq.errors import UnsupportedError, UsageError
from edgeq.job import Job
from edgeq.scheme import NEEDS_CALIBRATION, NEEDS_SEARCH

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.forward import Forward
    from edgeq.pipeline.maker import Maker
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product, Recipe
    from edgeq.quantize.spec import StickySpec

_OPTION = "--reuse-qparams-from"
_JUDGED = 128  # calibration samples at most that judge which int8 values may stay
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


def sticky_spec(folder: Path, prepared: Prepared, fp32: Forward, forward: Callable[[Any], Forward]) -> StickySpec:
    """Return what keeping a bundle's int8 values is given.

    Args:
        folder: the shipped model's bundle.
        prepared: the model and its data; calibration samples judge, since evaluation data decides nothing here.
        fp32: the float model.
        forward: makes a function from batches to outputs of a converted graph.

    Raises:
        UsageError, IntegrityError: as `check_reuse`.
        UnsupportedError: the artifact is laid out otherwise than this edgeq's.
    """
    from edgeq.lower.shipped import shipped_layers
    from edgeq.pipeline.searching import scores
    from edgeq.quantize.spec import StickySpec

    bundle, _ = _shipped(folder)
    samples = dataclasses.replace(prepared.calibration, count=min(prepared.calibration.count, _JUDGED))
    return StickySpec(
        layers=shipped_layers(bundle.artifact, bundle.manifest.target.runtime),
        score=lambda graph: scores(samples, prepared, fp32, forward(graph)),
        samples=samples.count,
    )


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
        kept=product.kept,
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
