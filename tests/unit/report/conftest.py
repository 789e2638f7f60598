"""A bundle on disk with its row: invented figures, every part of a report in them."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from edgeq.bundle.run_report import write_report
from edgeq.bundle.writer import write_bundle
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import Flip, FlipPair, Flips
from edgeq.core.results.report import PackageResult


def thumbnail() -> str:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(sink, "WEBP", lossless=True)
    return base64.b64encode(sink.getvalue()).decode()


@pytest.fixture
def row(item: BundleInput, tmp_path: Path) -> PackageResult:
    """A row whose bundle and report.json lie in a folder."""
    folder = tmp_path / "digits" / "android-arm64-xnnpack"
    folder.mkdir(parents=True)
    assert item.artifact.verified.timing is not None
    assert item.artifact.verified.kernels is not None
    verified = dataclasses.replace(
        item.artifact.verified,
        timing=dataclasses.replace(item.artifact.verified.timing, latencies_ms=(3.0, 3.1, 3.21, 4.5, 9.0)),
        kernels=dataclasses.replace(item.artifact.verified.kernels, precisions=("int8", "other")),
        flips=Flips(
            total=3,
            ranked=100,
            pairs=(FlipPair(fp32=0, artifact=1, count=2), FlipPair(fp32=1, artifact=0, count=1)),
            examples=(
                Flip(sample="data[7]", label=0, fp32=0, artifact=1, thumbnail=thumbnail()),
                Flip(sample="data[9]", label=None, fp32=1, artifact=5),
            ),
        ),
    )
    made = PackageResult(
        model=item.inputs.model.name,
        target=item.target.name,
        scheme=item.scheme,
        path=folder,
        digest=write_bundle(item, folder),
        size_bytes=10_000,
        download_bytes=9_000,
        fp32_bytes=item.inputs.model.fp32_bytes,
        verified=verified,
        checked=item.checked,
        delegated_macs=0.9,
        weights=item.inputs.model.weights,
        layers=item.artifact.lowered.layers,
    )
    write_report(folder, made)
    return made
