"""Snapdragon SoCs with a Hexagon tensor processor (HTP), the NPU that the backend `qnn-htp` compiles for."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.core.errors import UsageError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Soc:
    """A SoC, in the numbers of Qualcomm's AI runtime (QNN).

    Attributes:
        model: QNN's number of the SoC.
        htp_arch: version of the HTP's instruction set.
        vtcm_mb: size of its vector memory.
    """

    name: str
    title: str
    model: int
    htp_arch: int
    vtcm_mb: int


# QcomChipset and _soc_info_table of executorch 1.5.1, backends/qualcomm/serialization/qc_schema.py; the 7 series is not
# in that table
SOCS = (
    Soc(name="sm8350", title="Snapdragon 888", model=30, htp_arch=68, vtcm_mb=4),
    Soc(name="sm8450", title="Snapdragon 8 Gen 1", model=36, htp_arch=69, vtcm_mb=8),
    Soc(name="sm8475", title="Snapdragon 8+ Gen 1", model=42, htp_arch=69, vtcm_mb=8),
    Soc(name="sm8550", title="Snapdragon 8 Gen 2", model=43, htp_arch=73, vtcm_mb=8),
    Soc(name="sm8650", title="Snapdragon 8 Gen 3", model=57, htp_arch=75, vtcm_mb=8),
    Soc(name="sm8750", title="Snapdragon 8 Elite", model=69, htp_arch=79, vtcm_mb=8),
    Soc(name="sm8850", title="Snapdragon 8 Elite Gen 5", model=87, htp_arch=81, vtcm_mb=8),
)


def find_soc(name: str) -> Soc:
    """Return the SoC of that name.

    Raises:
        UsageError: an unknown name; the message lists the known ones.
    """
    known = {soc.name: soc for soc in SOCS}
    if name not in known:
        raise UsageError(f"unknown SoC {name!r}.{nearest(name, known)}", f"use one of: {', '.join(known)}")
    return known[name]
