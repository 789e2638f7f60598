"""`--devtools` as its user meets it: ExecuTorch's own readers take what lies beside the bundle."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import IntegrityError
from edgeq.core.manifest import BUNDLED_PROGRAM_NAME, ETDUMP_NAME, ETRECORD_NAME

from .conftest import X86, XNNPACK, Project, Run, command

HOST = "linux-x86_64-xnnpack"
NAMES = {ETRECORD_NAME, ETDUMP_NAME, BUNDLED_PROGRAM_NAME}


@pytest.mark.slow
def test_executorchs_own_readers_take_them_and_the_digest_stays(package: Run, project: Project) -> None:
    from executorch.devtools import Inspector
    from executorch.extension.pybindings.portable_lib import _load_bundled_program_from_buffer

    options = (*command(target=HOST), "--scheme", "static-int8")
    plain = package(*options, "--json", base=False).json["rows"][0]
    bundle = project.out / "quarters" / HOST
    assert NAMES.isdisjoint(path.name for path in bundle.iterdir())
    row = package(*options, "--devtools", "--json", base=False, cache=True).json["rows"][0]
    assert (row["digest"], row["download_bytes"]) == (plain["digest"], plain["download_bytes"])
    written = {name: (bundle / name).read_bytes() for name in NAMES}

    found = Inspector(etdump_path=str(bundle / ETDUMP_NAME), etrecord=str(bundle / ETRECORD_NAME)).to_dataframe()
    assert found["event_name"].str.contains("QC8").any()  # an int8 kernel of XNNPACK
    program = _load_bundled_program_from_buffer(written[BUNDLED_PROGRAM_NAME])
    samples = json.loads((bundle / "manifest.json").read_text())["golden"]["samples"]
    for index in range(samples):
        program.verify_result_with_bundled_expected_output("forward", index, 1e-5, 1e-6)

    # the cache keeps them, and refuses changed ones; no release gets them
    again = package(*options, "--devtools", "--json", base=False, cache=True).json["rows"][0]
    assert again["cached"]
    assert {name: (bundle / name).read_bytes() for name in NAMES} == written
    (kept,) = project.cache.rglob(ETRECORD_NAME)
    kept.write_bytes(b"another")
    assert not package(*options, "--devtools", "--json", base=False, cache=True).json["rows"][0]["cached"]
    Path("release.zip").write_bytes(bundle_zip(bundle))
    assert NAMES.isdisjoint(zipfile.ZipFile("release.zip").namelist())
    assert read_bundle(bundle).digest == plain["digest"]
    (bundle / "model.other").touch()
    with pytest.raises(IntegrityError, match="not listed"):
        read_bundle(bundle)


def test_where_there_is_no_program_to_look_into(package: Run, project: Project) -> None:
    package("--devtools").fails(2, "--devtools", "no target runs ExecuTorch")
    Path("model.pte").touch()
    package(*command("model.pte", XNNPACK), "--devtools", base=False).fails(2, "model.pte is already lowered")
    assert not (project.out / "quarters" / X86).exists()
