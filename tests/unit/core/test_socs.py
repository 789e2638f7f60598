from __future__ import annotations

import pytest

from edgeq.core.errors import UsageError
from edgeq.core.socs import SOCS, find_soc


def test_a_soc_has_qualcomms_numbers() -> None:
    soc = find_soc("sm8650")
    assert (soc.title, soc.model, soc.htp_arch, soc.vtcm_mb) == ("Snapdragon 8 Gen 3", 57, 75, 8)
    assert len({soc.name for soc in SOCS}) == len({soc.model for soc in SOCS}) == len(SOCS)


def test_an_unknown_soc_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown SoC 'sm8655'\. Did you mean 'sm8650'") as caught:
        find_soc("sm8655")
    assert "sm8350" in caught.value.fix
