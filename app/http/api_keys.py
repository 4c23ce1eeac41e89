"""API keys: they are generated, stored as hashes, read from a file, and compared in constant time.

A key has 256 random bits, so its SHA-256 cannot be inverted and needs no salt. Each key has the name of its owner: jobs
belong to names, and two keys with one name see the same jobs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from denoised.app.http.key_limits import KeyLimits, KeyOptionError

PREFIX = "denoised_"  # lets people and secret scanners recognize a key
ALGORITHM = "sha256"
NAME_RULE = "1 to 64 of letters, digits, . _ -; begins with a letter or digit; not 16 hexadecimal digits"
_NAME = re.compile(r"(?![0-9a-f]{16}$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]+")  # one word of a header
_HASH = re.compile(r"[0-9a-f]{64}")


class KeyFileError(Exception):
    """Invalid keys or key file. The message names the file and line, never a key."""


def key_hash(key: str) -> str:
    """SHA-256 in hexadecimal, the form in which keys are stored."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class KeyRing:
    """The accepted keys.

    Attributes:
        names: key hash → name of the owner.
        limits: By name, of those that have any.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, KeyLimits] = field(default_factory=dict)

    @classmethod
    def from_keys(cls, keys: Iterable[str], where: str = "the keys") -> KeyRing:
        """From plain keys. Each is owned by the first 16 digits of its hash, which no chosen name can equal.

        Raises:
            KeyFileError: for a key that does not fit into a header.
        """
        return cls(dict(_plain_key(key, where) for key in keys))

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """From a file with one key per line: NAME:sha256:HASH, as `denoised key` prints it, or a plain key, and options
        after it, separated by spaces (`app.http.key_limits`). A line that begins with # is a comment.

        The options belong to the name: of two lines with one name, those of the last line that has any.

        Raises:
            KeyFileError: when the file cannot be read or a line is invalid.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise KeyFileError(f"{path} cannot be read ({reason})") from error
        entries = list(_entries(lines, path))
        limits = {name: options for _, name, options in entries if options is not None}
        return cls({digits: name for digits, name, _ in entries}, limits)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __or__(self, other: KeyRing) -> KeyRing:
        return KeyRing({**self.names, **other.names}, {**self.limits, **other.limits})

    def without(self, other: KeyRing) -> KeyRing:
        """The keys that the other ring does not have."""
        return KeyRing({digits: name for digits, name in self.names.items() if digits not in other.names})

    def owner(self, key: str) -> str | None:
        """The owner of a key, None if it is unknown. All hashes are compared, so the duration reveals nothing."""
        given = key_hash(key)
        matches = [name for known, name in self.names.items() if hmac.compare_digest(given, known)]
        return matches[0] if matches else None


def new_key(name: str) -> tuple[str, str]:
    """A random key and its line for the key file.

    Raises:
        KeyFileError: for an invalid name.
    """
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"NAME {name!r} is invalid (allowed: {NAME_RULE})")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{ALGORITHM}:{key_hash(key)}"


def _entries(lines: Iterable[str], path: Path) -> Iterator[tuple[str, str, KeyLimits | None]]:
    """The (hash, name, options) of each line that has a key; None without options."""
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            where = f"{path}, line {number}"
            yield *_entry(words[0], where), _options(words[1:], where)


def _options(words: Sequence[str], where: str) -> KeyLimits | None:
    try:
        return KeyLimits.parse(words) if words else None
    except KeyOptionError as error:
        raise KeyFileError(f"{where}: {error}") from error


def _entry(text: str, where: str) -> tuple[str, str]:
    name, algorithm, digits = (*text.split(":", 2), "", "")[:3]
    if algorithm != ALGORITHM:
        return _plain_key(text, where)
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{where}: the name is invalid (allowed: {NAME_RULE})")
    if not _HASH.fullmatch(digits):
        raise KeyFileError(f"{where}: the hash has {len(digits)} characters (allowed: 64 digits of 0-9a-f)")
    return digits, name


def _plain_key(key: str, where: str) -> tuple[str, str]:
    if not _KEY.fullmatch(key):
        raise KeyFileError(f"{where}: a key has characters that a header cannot carry (allowed: ASCII without spaces)")
    digits = key_hash(key)
    return digits, digits[:16]
