"""verdict.json as bytes: what edgeq writes it reads, and anything else is a named error."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core import measurement as verdicts
from edgeq.core.errors import EdgeqError, IntegrityError, UnsupportedError, UsageError
from edgeq.core.measurement import MAX_VERDICT_BYTES, Verdict, parse_verdict, verdict_bytes
from edgeq.core.schema import json_schema

DATA: dict[str, Any] = {
    "schema_version": 1,
    "bundle": "ab" * 32,
    "edgeq": "0.1.0",
    "date": "2026-11-21T12:00:00Z",
    "device": {
        "name": "Google Pixel 9 (adb)",
        "platform": "android",
        "os": "Android 16",
        "arch": "arm64",
        "cores": 8,
        "is_virtual": False,
    },
    "run": {
        "runtime": "executorch 1.5.1",
        "threads": 2,
        "warmup": 5,
        "latencies_ms": [8.0, 8.5, 12.25],
        "load_ms": 5.0,
        "peak_memory_bytes": 1000,
    },
    "outputs": [{"dtype": "float32", "shape": [2, 3], "data": base64.b64encode(bytes(24)).decode()}],
}
WORDS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.integers())


def changed(path: str, value: Any) -> bytes:
    """Return the verdict with the value at `path` ("run.threads") replaced."""
    root = json.loads(json.dumps(DATA))
    node = root
    *folders, last = path.split(".")
    for part in folders:
        node = node[int(part) if part.isdigit() else part]
    node[int(last) if last.isdigit() else last] = value
    return json.dumps(root).encode()


def test_what_is_written_is_read() -> None:
    verdict = parse_verdict(json.dumps(DATA).encode(), "verdict.json")
    assert verdict.outputs[0].raw == bytes(24)
    assert parse_verdict(verdict_bytes(verdict), "verdict.json") == verdict
    assert json.loads(verdict_bytes(verdict)) == DATA
    assert set(json_schema(Verdict)["properties"]) == set(DATA)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("schema_version", True, "no schema_version"),
        ("schema_version", 0, "schema_version"),
        ("bundle", "AB" * 32, "bundle"),
        ("date", "yesterday", "date"),
        ("outcome", "ok", "unknown key 'outcome'"),
        ("run.passed", True, "unknown key 'run.passed'"),
        ("run.latencies_ms", [], "run.latencies_ms"),
        ("run.latencies_ms", [1.0, -0.5], "run.latencies_ms.1"),
        ("run.latencies_ms", [float("nan")], "NaN is not a finite number"),
        ("run.latencies_ms", [float("inf")], "Infinity is not a finite number"),
        ("run.latencies_ms", ["8"], "run.latencies_ms.0"),
        ("run.load_ms", -1.0, "run.load_ms"),
        ("run.peak_memory_bytes", -1, "run.peak_memory_bytes"),
        ("run.peak_memory_bytes", 1.5, "run.peak_memory_bytes"),
        ("run.threads", 0, "run.threads"),
        ("device.platform", "windows", "device.platform"),
        ("device.arch", "riscv64", "device.arch"),
        ("device.name", "", "device.name"),
        ("outputs", [], "outputs"),
        ("outputs.0.dtype", "object", "outputs.0.dtype"),
        ("outputs.0.shape", [2, 2], "24 bytes of data for float32 [2, 2]"),
        ("outputs.0.shape", [-2, -3], "outputs.0.shape"),
        ("outputs.0.shape", [2**53 - 1, 2**53 - 1], "24 bytes of data"),
        ("outputs.0.data", "no base64!", "not base64"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, why: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_verdict(changed(path, value), "farm/verdict.json")
    assert caught.value.what.startswith("farm/verdict.json does not have edgeq's format: ")
    assert why in caught.value.what
    assert "--write-verdict" in caught.value.fix


def test_a_newer_schema_is_unsupported_and_a_huge_file_refused_unread() -> None:
    with pytest.raises(UnsupportedError, match="schema version 2, this edgeq reads 1"):
        parse_verdict(changed("schema_version", 2), "verdict.json")
    with pytest.raises(IntegrityError, match=f"more than {MAX_VERDICT_BYTES} bytes"):
        parse_verdict(b" " * (MAX_VERDICT_BYTES + 1), "verdict.json")


def test_a_verdict_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = parse_verdict(json.dumps(DATA).encode(), "verdict.json")
    least = len(verdict_bytes(verdict))
    monkeypatch.setattr(verdicts, "MAX_VERDICT_BYTES", least - 1)
    with pytest.raises(UsageError, match=f"the verdict would have {least} bytes, but at most {least - 1} are read"):
        verdict_bytes(verdict)


@pytest.mark.parametrize("key", sorted(DATA))
def test_every_key_must_be_there_and_once(key: str) -> None:
    with pytest.raises(IntegrityError):
        parse_verdict(json.dumps({name: value for name, value in DATA.items() if name != key}).encode(), "verdict.json")
    twice = json.dumps(DATA)[:-1] + f', "{key}": {json.dumps(DATA[key])}}}'
    with pytest.raises(IntegrityError, match="occurs twice"):
        parse_verdict(twice.encode(), "verdict.json")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_verdict_or_an_error(data: bytes) -> None:
    with pytest.raises(EdgeqError):
        parse_verdict(data, "verdict.json")


PATHS = ("bundle", "device", "device.cores", "run", "run.latencies_ms", "outputs", "outputs.0", "outputs.0.shape")


@given(path=st.sampled_from(PATHS), value=WORDS)
def test_any_value_in_any_place_is_a_verdict_or_an_error(path: str, value: Any) -> None:
    try:
        found: object = parse_verdict(changed(path, value), "verdict.json")
    except IntegrityError as err:
        found = err.what
    assert isinstance(found, Verdict) or str(found).startswith("verdict.json does not have edgeq's format: ")
