"""`owner/name[@revision]`: how a model on a hub is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 96  # characters of owner/name, as the hub allows
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]*[A-Za-z0-9]")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A model on a hub.

    Attributes:
        repository: owner/name.
        revision: a branch, a tag or a commit.
    """

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name that a text spells; None for a text that is not one, such as most paths."""
        repository, at, revision = text.partition("@")
        if not REPOSITORY.fullmatch(repository) or len(repository) > MAX_LENGTH or _is_odd(repository):
            return None
        if not at:
            return cls(repository)
        return cls(repository, revision) if REVISION.fullmatch(revision) and not _is_odd(revision) else None

    @property
    def commit(self) -> str | None:
        """The revision, if it is a commit."""
        return self.revision if COMMIT.fullmatch(self.revision) else None

    @property
    def cache_folder(self) -> str:
        """The folder's name in the cache of `huggingface_hub`."""
        return f"models--{self.repository.replace('/', '--')}"

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def _is_odd(text: str) -> bool:
    """Whether a name has what the hub does not allow and what would mean something else in a path."""
    return "--" in text or ".." in text or "//" in text or text.endswith((".", "/"))
