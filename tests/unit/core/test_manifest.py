from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from bundle_items import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.bundle.writer import manifest_from
from edgeq.core.errors import EdgeqError, IntegrityError, UnsupportedError, UsageError
from edgeq.core.manifest import (
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    manifest_bytes,
    manifest_digest,
    measure,
    parse_manifest,
)
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import Fidelity, Interval, Parity
from edgeq.core.results.model import TensorSpec
from edgeq.core.schema import json_schema

FILES = (
    FileEntry(path="model.pte", sha256="1" * 64, size_bytes=10, role="artifact"),
    FileEntry(path="golden.npz", sha256="2" * 64, size_bytes=20, role="golden"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@pytest.fixture(scope="module")
def data(item: BundleInput) -> bytes:
    return manifest_bytes(manifest_from(item, FILES))


def edited(data: bytes, path: str, value: Any) -> bytes:
    """Return the manifest with the value at `path` ("files.0.path") replaced."""
    root = json.loads(data)
    node = root
    *folders, last = path.split(".")
    for part in folders:
        node = node[int(part) if part.isdigit() else part]
    node[int(last) if last.isdigit() else last] = value
    return json.dumps(root).encode()


def test_holds_the_facts_of_the_steps(item: BundleInput) -> None:
    manifest = manifest_from(item, FILES)
    assert (manifest.model.name, manifest.target.name, manifest.scheme) == (
        "digits",
        "android-arm64-xnnpack",
        "static-int8",
    )
    assert (manifest.runtime.exported_with, manifest.runtime.oldest_in_field) == ("1.5.1", "1.5")
    assert manifest.threads == 2
    assert manifest.inputs[0].preprocessing == item.inputs.preprocess
    assert manifest.outputs[0].preprocessing is None
    assert manifest.layers.macs == 1000
    assert manifest.layers.delegated_macs == 0.9
    assert manifest.layers.undelegated == ("aten::add.out", "aten::mul.out")
    assert manifest.accepted
    assert manifest.accuracy is not None
    assert (manifest.accuracy.sqnr_db, manifest.accuracy.max_abs) == (31.23, 0.01235)
    assert manifest.parity is not None
    assert manifest.parity.sqnr_db == "inf"
    assert manifest.provenance.data_findings == ("few",)
    assert [entry.path for entry in manifest.files] == ["golden.npz", "model.pte"]


def test_holds_no_times_no_paths_and_nothing_of_the_machine(item: BundleInput) -> None:
    verified = dataclasses.replace(item.artifact.verified, load_ms=99.0, peak_memory_bytes=1, timing=None)
    gates = tuple(
        dataclasses.replace(gate, measured="other", detail="other" if gate.name != "accuracy_drop" else gate.detail)
        for gate in item.checked.gates
    )
    checked = dataclasses.replace(item.checked, gates=gates, warnings=("slow host",))
    other = changed(item, verified=verified, checked=checked)
    data = manifest_bytes(manifest_from(item, FILES))
    assert manifest_bytes(manifest_from(other, FILES)) == data
    assert b"3.21" not in data
    assert b"/home" not in data
    assert b"upper end 0.31 pp" in data


def test_an_artifact_that_came_as_it_is(item: BundleInput) -> None:
    lowered = dataclasses.replace(item.artifact.lowered, layers=(), delegated_macs=None)
    manifest = manifest_from(changed(item, lowered=lowered), FILES)
    assert (manifest.layers.macs, manifest.layers.delegated_macs) == (None, None)


def test_preprocessing_belongs_to_images(item: BundleInput) -> None:
    image, tokens = item.inputs.model.inputs[0], TensorSpec(name="t", dtype="int64", shape=(1, 128))
    gray = TensorSpec(name="g", dtype="float32", shape=(1, 28, 28))
    for specs, expected in (
        ((image, tokens), [True, False]),
        ((gray, tokens), [True, False]),
        ((gray, image), [False, True]),
    ):
        model = dataclasses.replace(item.inputs.model, inputs=specs)
        manifest = manifest_from(changed(item, model=model), FILES)
        assert [tensor.preprocessing is not None for tensor in manifest.inputs] == expected


def test_a_failed_gate_is_not_accepted(item: BundleInput) -> None:
    gates = (dataclasses.replace(item.checked.gates[0], outcome="failed"), *item.checked.gates[1:])
    rejected = changed(item, checked=dataclasses.replace(item.checked, gates=gates))
    assert not manifest_from(rejected, FILES).accepted


@pytest.mark.parametrize("name", ["../up", "a/b", "", "con:", ".hidden", "a\\b", "ends.", "ü"])
def test_a_name_that_would_be_a_path_is_refused(item: BundleInput, name: str) -> None:
    model = dataclasses.replace(item.inputs.model, name=name)
    with pytest.raises(UsageError, match="name"):
        manifest_from(changed(item, model=model), FILES)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (31.23456, 31.23),
        (-0.00001234567, -1.235e-05),
        (-0.0, 0.0),
        (float("inf"), "inf"),
        (1.7976931348623157e308, "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_measures_have_four_digits(value: float, expected: float | str) -> None:
    assert repr(measure(value)) == repr(expected)


@settings(max_examples=50)
@given(
    fidelity=st.none() | st.builds(Fidelity, samples=st.integers(0, 9), metric=st.none() | st.text(), cosine=FLOATS),
    parity=st.none() | st.builds(Parity, samples=st.integers(0, 9), sqnr_db=FLOATS),
    interval=st.none() | st.builds(Interval),
    labels=st.lists(st.text()).map(tuple),
)
def test_round_trip(
    item: BundleInput,
    fidelity: Fidelity | None,
    parity: Parity | None,
    interval: Interval | None,
    labels: tuple[str, ...],
) -> None:
    if fidelity:
        fidelity = dataclasses.replace(fidelity, drop_pp=interval)
    verified = dataclasses.replace(item.artifact.verified, fidelity=fidelity, parity=parity)
    manifest = manifest_from(changed(item, verified=verified, labels=labels), FILES)
    data = manifest_bytes(manifest)
    assert parse_manifest(data) == manifest
    assert manifest_bytes(parse_manifest(data)) == data


def survives(data: bytes) -> None:
    try:
        assert isinstance(parse_manifest(data), Manifest)
    except EdgeqError as err:
        refusal = err
    else:
        return
    assert refusal.what
    assert refusal.fix
    assert len(refusal.what) < 500


@settings(max_examples=200)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_end_well_or_with_a_named_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=300)
@given(draw=st.data())
def test_a_mutated_manifest_ends_well_or_with_a_named_error(data: bytes, draw: st.DataObject) -> None:
    if draw.draw(st.booleans()):
        at = draw.draw(st.integers(0, len(data) - 1))
        survives(data[:at] + draw.draw(st.binary(max_size=3)) + data[at + draw.draw(st.integers(0, 3)) :])
        return
    root = node = json.loads(data)
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return
        key = draw.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or draw.draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    node[key] = draw.draw(JSON)
    survives(json.dumps(root).encode())


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/b", "C:x", "a\\b", "a\0b", "", ".", "..", ".x", "x.", "x\n", "ü.pte", "x" * 200]
)
def test_hostile_paths_are_refused(data: bytes, path: str) -> None:
    with pytest.raises(IntegrityError, match=r"files\.\d\.path"):
        parse_manifest(edited(data, "files.1.path", path))


@pytest.mark.parametrize("path", ["golden.npz", "GOLDEN.npz", "manifest.json", "Manifest.json", "report.html"])
def test_names_that_clash_are_refused(data: bytes, path: str) -> None:
    with pytest.raises(IntegrityError, match="share a name"):
        parse_manifest(edited(data, "files.1.path", path))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("files.0.size_bytes", -1, "size_bytes"),
        ("files.0.size_bytes", 10**400, "size_bytes"),
        ("files.0.size_bytes", "10", "size_bytes"),
        ("files.0.sha256", "A" * 64, "sha256"),
        ("files.0.sha256", "a" * 63, "sha256"),
        ("files.0.role", "artifact", "one golden"),
        ("files", [], "files"),
        ("model.weights", "unknown", "weights"),
        ("model.extra", 1, "unknown key 'model.extra'"),
        ("accepted", False, "contradicts the gates"),
        ("gates.0.outcome", "failed", "contradicts the gates"),
        ("schema_version", 0, "schema_version"),
        ("schema_version", "1", "schema_version"),
        ("schema_version", True, "schema_version"),
        ("accuracy.cosine", "Infinity", "cosine"),
    ],
)
def test_broken_values_are_named(data: bytes, path: str, value: object, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        parse_manifest(edited(data, path, value))


def test_a_newer_schema_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedError, match="schema version 2"):
        parse_manifest(edited(edited(data, "schema_version", 2), "news", 1))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda data: data.replace(b'"seed": 0', b'"seed": 0, "seed": 1'), "'seed' occurs twice"),
        (lambda data: data.replace(b'"seed": 0', b'"seed": NaN'), "not a finite number"),
        (lambda data: data.replace(b'"scale": 0', b'"scale": 1e999, "x": 0'), "not a finite number"),
        (lambda data: b"[" * 10 * len(data), "nested too deeply"),
        (lambda data: data + b" " * MAX_MANIFEST_BYTES, "more than 4000000 bytes"),
        (lambda data: data[:-3], "does not have edgeq's format"),
        (lambda data: data.decode().encode("utf-16"), "decode"),
        (lambda data: data[:0], "does not have edgeq's format"),
        (lambda data: b"[" + data + b"]", "does not have edgeq's format"),
        (lambda data: data.replace(b"zero", b"\\ud800"), "does not have edgeq's format"),
    ],
)
def test_broken_bytes_are_named(data: bytes, broken: Any, why: str) -> None:
    assert broken(data) != data
    with pytest.raises(IntegrityError, match=why):
        parse_manifest(broken(data))


def test_the_digest_covers_every_byte_of_the_manifest_and_every_hash(item: BundleInput) -> None:
    manifest = manifest_from(item, FILES)
    data = manifest_bytes(manifest)
    other = manifest_from(item, (FILES[0].model_copy(update={"sha256": "3" * 64}), FILES[1]))
    digests = {manifest_digest(data, manifest), manifest_digest(data + b" ", manifest), manifest_digest(data, other)}
    assert len(digests) == 3


def test_a_manifest_that_nobody_would_read_is_not_written(item: BundleInput) -> None:
    large = changed(item, labels=("x" * MAX_MANIFEST_BYTES,))
    with pytest.raises(UsageError, match="shorten the labels"):
        manifest_bytes(manifest_from(large, FILES))


def test_schema_names_every_key_and_forbids_others() -> None:
    schema = json_schema(Manifest)
    assert set(schema["properties"]) == set(Manifest.model_fields)
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)
