"""A machine-learning bill of materials for a release: CycloneDX JSON 1.6, validated against its schema."""

from __future__ import annotations

import datetime
import importlib.metadata
import uuid
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import EdgeqError, UsageError, first_line
from edgeq.core.manifest import Manifest

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


_NAMESPACE = uuid.UUID("5b1f3c6e-7d4e-5a53-9f0c-2f1e6f2f8f10")  # ours; the serial number follows from the digest


def bill_of_materials(manifest: Manifest, digest: str, *, now: datetime.datetime, licence: str | None) -> bytes:
    """Return the bill of a bundle: the model, the hashes of its data, tools with versions and licences.

    Args:
        manifest: the bundle's.
        digest: the bundle's.
        now: the time of the release.
        licence: the model's own, an SPDX expression; None where none was given.

    Raises:
        UsageError: `licence` is not an SPDX expression.
        EdgeqError: the bill does not fit its own schema.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    model = _model(manifest, licence)
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, digest),
        metadata=BomMetaData(component=model, timestamp=now),
        components=[*_data(manifest), *(_tool(name, version) for name, version in manifest.provenance.tools.items())],
    )
    bom.register_dependency(model, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if found is not None:
        raise EdgeqError(f"the bill of materials does not fit its schema: {first_line(ValueError(found))}", "report it")
    return text.encode() + b"\n"


def _model(manifest: Manifest, licence: str | None) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression

    facts = manifest.model
    artifact = manifest.file("artifact")
    said = {
        "target": manifest.target.name,
        "scheme": manifest.scheme,
        "runtime": f"{manifest.runtime.name} {manifest.runtime.exported_with}",
        "source_sha256": manifest.provenance.source_sha256,
        "weights": facts.weights,
        **{f"{entry.path}.sha256": entry.sha256 for entry in manifest.files if entry.role == "weights"},
    }
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=facts.name,
        version=facts.version,
        bom_ref=f"model:{facts.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=artifact.sha256)],
        licenses=[LicenseExpression(_spdx(licence))] if licence else None,
        properties=[Property(name=f"edgeq:{name}", value=value) for name, value in said.items()],
    )


def _spdx(licence: str) -> str:
    from cyclonedx.spdx import is_expression

    if not is_expression(licence):
        raise UsageError(
            f"{licence!r} is not an SPDX license expression",
            "give one with --license, such as Apache-2.0 or MIT OR BSD-3-Clause",
        )
    return licence


def _data(manifest: Manifest) -> list[Component]:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    facts = manifest.provenance
    sets = (
        ("calibration", facts.calibration_sha256, facts.calibration_samples),
        ("evaluation", facts.evaluation_sha256, facts.evaluation_samples),
    )
    return [
        Component(
            type=ComponentType.DATA,
            name=f"{name}-data",
            bom_ref=f"data:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
            properties=[Property(name="edgeq:samples", value=str(samples))],
        )
        for name, sha256, samples in sets
        if sha256 is not None
    ]


def _tool(name: str, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from packageurl import PackageURL

    licence = _licence(name, version)
    return Component(
        type=ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"tool:{name}",
        purl=None if name == "python" else PackageURL("pypi", None, name, version),
        licenses=[LicenseExpression(licence)] if licence else None,
    )


def _licence(name: str, version: str) -> str | None:
    """Return the licence that the installed tool states as SPDX; None where another version, or none, is installed."""
    from cyclonedx.spdx import is_expression

    if name == "python":
        return "PSF-2.0"
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    metadata: Any = found.metadata  # its type has no get(), and another finder's raises KeyError
    stated = metadata.get("License-Expression") or metadata.get("License") or ""
    return stated if found.version == version and len(stated) < 200 and is_expression(stated) else None
