"""API keys: generated, stored as hashes, read from a file, each with an owner."""

from __future__ import annotations

import gc
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from denoised.app.http.api_keys import KeyFileError, KeyRing, key_hash, new_key
from denoised.app.launch.cli import cli


def test_a_key_has_256_random_bits_and_its_line_only_the_hash() -> None:
    keys = {new_key("phone")[0] for _ in range(50)}
    assert len(keys) == 50
    key, line = new_key("phone")
    assert key.startswith("denoised_")
    assert len(key) == len("denoised_") + 43  # 32 bytes in base64
    assert line == f"phone:sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_the_command_prints_a_key_and_its_line_for_the_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["key", "phone"])
    assert done.exit_code == 0
    key, line = done.stdout.splitlines()
    file = tmp_path / "keys"
    file.write_text(f"{line}\n")
    assert key not in file.read_text()
    assert KeyRing.read(file).owner(key) == "phone"


@pytest.mark.parametrize("name", ["", "a:b", "a b", "-a", "../x", "é", "x" * 65, "a\nb", "0" * 16])
def test_an_invalid_name_is_refused(name: str) -> None:
    done = CliRunner().invoke(cli, ["key", "--", name])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_a_file_may_contain_named_hashes_plain_keys_and_comments(tmp_path: Path) -> None:
    (one, first), (two, second) = new_key("phone"), new_key("phone")
    file = tmp_path / "keys"
    file.write_text(f"# who may call\n{first}\n\n  {second}  \na:plain:key\n")
    ring = KeyRing.read(file)
    assert ring.owner(one) == ring.owner(two) == "phone", "an old and a new key of one owner"
    assert ring.owner("a:plain:key") == key_hash("a:plain:key")[:16]
    assert ring.owner(first.split(":")[2]) is None, "the hash itself lets nobody in"
    assert ring.owner("# who may call") is None


BROKEN = ["phone:sha256:abc", "phone:sha256:" + "G" * 64, "a b:sha256:" + "0" * 64, "sècret", "two words"]


@pytest.mark.parametrize("line", BROKEN)
def test_an_invalid_line_is_refused_by_number_and_not_repeated(line: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"good-one\n{line}\n")
    with pytest.raises(KeyFileError, match="line 2") as refusal:
        KeyRing.read(file)
    assert line not in str(refusal.value)
    refused = CliRunner().invoke(cli, ["api", "--api-keys-file", str(file)])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_file_is_a_one_line_error(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    refused = CliRunner().invoke(cli, ["api", "--api-keys-file", str(file)])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert str(file) in refused.stderr


@given(st.lists(st.text("abcXYZ019-_", min_size=1, max_size=40), unique=True, max_size=8), st.text(max_size=40))
def test_a_ring_accepts_only_its_own_keys(keys: list[str], other: str) -> None:
    ring = KeyRing.from_keys(keys)
    assert [ring.owner(key) is not None for key in keys] == [True] * len(keys)
    assert len({ring.owner(key) for key in keys}) == len(keys)
    assert (ring.owner(other) is not None) == (other in keys)


def test_a_ring_stores_no_plain_key_and_compares_all_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"secret-{k}-of-the-ring" for k in range(5)]
    ring = KeyRing.from_keys(keys)
    assert not any(key in repr(ring) for key in keys)
    assert not any(isinstance(item, str) and item in keys for item in gc.get_referents(ring.names))
    compared: list[Any] = []
    same = hmac.compare_digest
    monkeypatch.setattr("denoised.app.http.api_keys.hmac.compare_digest", lambda a, b: compared.append(b) or same(a, b))
    assert ring.owner(keys[0]) is not None
    assert len(compared) == 5
