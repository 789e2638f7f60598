from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from edgeq.core.errors import EdgeqError, EnvironmentProblem, IntegrityError, UsageError
from edgeq.deliver.ota.keys import load_keys, new_keys, rotated
from tests.unit.deliver.ota.conftest import Publisher


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    os.umask(0o000)
    try:
        ring = new_keys(tmp_path / "keys", counts={"root": (2, 3)}, places={})
    finally:
        os.umask(0o022)
    private = sorted(path.name for path in ring.folder.glob("*.pem"))
    assert private == ["root-1.pem", "root-2.pem", "root-3.pem", "snapshot-1.pem", "targets-1.pem", "timestamp-1.pem"]
    assert {path.stat().st_mode & 0o777 for path in ring.folder.glob("*.pem")} == {0o600}
    assert ring.folder.stat().st_mode & 0o777 == 0o700
    assert b"PRIVATE" not in (ring.folder / "keys.json").read_bytes()
    assert len(ring.signers("root")) == 3


def test_never_overwrites_keys(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys", counts={}, places={})
    with pytest.raises(UsageError, match="has keys already"):
        new_keys(tmp_path / "keys", counts={}, places={})


def test_refuses_a_private_key_that_others_may_read(tmp_path: Path) -> None:
    ring = new_keys(tmp_path / "keys", counts={}, places={})
    (ring.folder / "targets-1.pem").chmod(0o644)
    with pytest.raises(IntegrityError, match="is readable by other users"):
        ring.signers("targets")


def test_a_key_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = new_keys(tmp_path / "other", counts={}, places={})
    monkeypatch.setenv("TARGETS_KEY", (other.folder / "targets-1.pem").read_text())
    ring = new_keys(tmp_path / "keys", counts={}, places={"targets": "env:TARGETS_KEY"})
    assert not list(ring.folder.glob("targets*"))
    (signer,) = load_keys(ring.folder).signers("targets")
    assert signer.public_key.keyid == other.file.roles["targets"].keys[0].keyid
    monkeypatch.delenv("TARGETS_KEY")
    with pytest.raises(EnvironmentProblem, match=r"0 private keys for targets .*env:TARGETS_KEY"):
        ring.signers("targets")
    monkeypatch.setenv("TARGETS_KEY", (other.folder / "root-1.pem").read_text())
    with pytest.raises(IntegrityError, match="does not belong to"):
        ring.signers("targets")


def test_no_message_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = new_keys(tmp_path / "keys", counts={}, places={})
    text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEISECRET"
    (ring.folder / "targets-1.pem").write_text(text)
    with pytest.raises(IntegrityError) as caught:
        ring.signers("targets")
    error: BaseException | None = caught.value
    while error is not None:
        assert "SECRET" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    monkeypatch.setenv("K", "x")
    with pytest.raises(EdgeqError) as caught:
        new_keys(tmp_path / "k2", counts={}, places={"root": "nokms://host/key?pin=1234"})
    assert "1234" not in str(caught.value)


def test_a_threshold_needs_its_keys(tmp_path: Path) -> None:
    ring = new_keys(tmp_path / "keys", counts={"root": (2, 3)}, places={})
    (ring.folder / "root-2.pem").unlink()
    assert len(ring.signers("root")) == 2
    (ring.folder / "root-3.pem").unlink()
    with pytest.raises(EnvironmentProblem, match="1 private keys for root are available, 2 must sign"):
        ring.signers("root")


@pytest.mark.parametrize("uri", ["nowhere:x", "file2:x.pem", "", "env:NOT_SET_AT_ALL"])
def test_unknown_places(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UsageError):
        new_keys(tmp_path / "keys", counts={}, places={"root": uri})
    assert not (tmp_path / "keys" / "keys.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"roles": {}}'])
def test_a_damaged_key_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"keys\.json does not have edgeq's format"):
        load_keys(tmp_path)


def test_no_keys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no keys in"):
        load_keys(tmp_path)


def test_other_keys_do_not_sign_a_channel(publisher: Publisher, tmp_path: Path) -> None:
    publisher.release(publisher.bundle("1"))
    before = {path: path.read_bytes() for path in publisher.channel.rglob("*") if path.is_file()}
    publisher.keys = tmp_path / "others"
    new_keys(publisher.keys, counts={}, places={})
    with pytest.raises(IntegrityError, match="are not those of"):
        publisher.release(publisher.bundle("2"))
    assert {path: path.read_bytes() for path in publisher.channel.rglob("*") if path.is_file()} == before


def test_a_rotation_that_was_cut_short_is_finished_by_the_next_release(publisher: Publisher) -> None:
    publisher.release(publisher.bundle("1"))
    rotated(publisher.ring, "timestamp")  # and killed before it was published
    publisher.release(publisher.bundle("2"))
    channel = publisher.state
    assert channel.roots[-1].signed.version == 2
    (key,) = publisher.ring.file.roles["timestamp"].keys
    assert channel.roots[-1].signed.roles["timestamp"].keyids == [key.keyid]


def test_a_new_root_without_the_old_keys_is_refused(publisher: Publisher) -> None:
    publisher.release(publisher.bundle("1"))
    ring = rotated(publisher.ring, "root")
    (ring.folder / "root-1.pem").unlink()
    with pytest.raises(IntegrityError, match="root keys did not sign the change"):
        publisher.release(publisher.bundle("2"))


def test_public_part_is_checked(tmp_path: Path) -> None:
    ring = new_keys(tmp_path / "keys", counts={}, places={})
    facts = json.loads((ring.folder / "keys.json").read_text())
    facts["roles"]["root"]["keys"][0]["public"] = {}
    (ring.folder / "keys.json").write_text(json.dumps(facts))
    with pytest.raises(IntegrityError):
        load_keys(ring.folder).signers("root")
    shutil.rmtree(ring.folder)


def test_an_older_copy_of_the_keys_does_not_bring_a_revoked_one_back(publisher: Publisher, tmp_path: Path) -> None:
    publisher.release(publisher.bundle("1"))
    fresh, old = publisher.keys, tmp_path / "copy"
    shutil.copytree(fresh, old)
    rotated(publisher.ring, "targets")
    publisher.release(publisher.bundle("2"))
    before = {path: path.read_bytes() for path in publisher.channel.rglob("*") if path.is_file()}
    publisher.keys = old
    with pytest.raises(IntegrityError, match=r"revoked key: .* replaced the targets key"):
        publisher.release(publisher.bundle("3"))
    assert {path: path.read_bytes() for path in publisher.channel.rglob("*") if path.is_file()} == before
    publisher.keys = fresh
    publisher.release(publisher.bundle("3"))
