"""API keys: made, held as hashes, read from a file, compared in constant time.

A key is 256 random bits, so that its SHA-256 cannot be guessed back and needs no salt. Whoever has
a key is known by its name: jobs belong to names, and two keys of one name see the same jobs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "denoised_"  # by which people, and programs that look for leaked secrets, know one
MARK = "sha256"
NAMES = "1 … 64 letters, digits, . _ -, a letter or digit first; not 16 hexadecimal digits"
_NAME = re.compile(r"(?![0-9a-f]{16}$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]+")  # what a header can carry in one word
_HASH = re.compile(r"[0-9a-f]{64}")


class KeyFileError(Exception):
    """Keys that cannot be used; the message names the place and never a key."""


def key_hash(key: str) -> str:
    """How keys are held: SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class KeyRing:
    """The keys that are accepted. names: of their owners, by hash."""

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: Iterable[str], where: str = "the keys") -> KeyRing:
        """From keys as they are written. Their owner is named by the first 16 digits of the hash, which no name can be.

        Raises:
            KeyFileError: for a key that no header can carry.
        """
        return cls(dict(_plain(key, where) for key in keys))

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """From a file of one key a line: NAME:sha256:HASH as `denoised key` prints it, or a key as it is; # begins a
        comment.

        Raises:
            KeyFileError: when it cannot be read, or a line of it cannot.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise KeyFileError(f"{path} cannot be read ({reason})") from error
        return cls(dict(_entries(lines, path)))

    def __bool__(self) -> bool:
        return bool(self.names)

    def __or__(self, other: KeyRing) -> KeyRing:
        return KeyRing({**self.names, **other.names})

    def owner(self, key: str) -> str | None:
        """Whose key it is; None when it is nobody's. All are compared, so that the time taken tells nothing."""
        given = key_hash(key)
        matches = [name for known, name in self.names.items() if hmac.compare_digest(given, known)]
        return matches[0] if matches else None


def new_key(name: str) -> tuple[str, str]:
    """A key that nobody had before, and its line for the file.

    Raises:
        KeyFileError: for a name that no line can hold.
    """
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"NAME {name!r} is not possible (allowed: {NAMES})")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{MARK}:{key_hash(key)}"


def _entries(lines: Iterable[str], path: Path) -> Iterator[tuple[str, str]]:
    """(hash, name) of each line that holds a key."""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield _entry(text, f"{path}, line {number}")


def _entry(text: str, where: str) -> tuple[str, str]:
    name, mark, digits = (*text.split(":", 2), "", "")[:3]
    if mark != MARK:
        return _plain(text, where)
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{where}: the name is not possible (allowed: {NAMES})")
    if not _HASH.fullmatch(digits):
        raise KeyFileError(f"{where}: the hash has {len(digits)} characters (allowed: 64 digits of 0-9a-f)")
    return digits, name


def _plain(key: str, where: str) -> tuple[str, str]:
    if not _KEY.fullmatch(key):
        raise KeyFileError(f"{where}: a key has characters that no header carries (allowed: ASCII without spaces)")
    digits = key_hash(key)
    return digits, digits[:16]
