"""The API keys that are accepted now: those of the start, and of the key file as it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from denoised.app.http.api_keys import KeyFileError, KeyRing
from denoised.app.http.key_limits import KeyLimits

KEY = ContextVar("key", default="")
"""The hash of the API key that the current request came with; empty without one."""

log = logging.getLogger("denoised.api")

CHECK_SECONDS = 1.0  # between two looks at the key file


class LiveKeys:
    """Whether keys are required is decided at the start: a file that has become empty lets nobody in.

    Used in the event loop; `limits` and `current` from any thread.

    Attributes:
        required: Whether a request needs a key.
        current: The accepted keys.
    """

    def __init__(self, initial: KeyRing, file: Path | None = None) -> None:
        """initial: all keys of the start. file: the one that some of them come from.

        Raises:
            KeyFileError: when the file cannot be read or a line is invalid.
        """
        self.required = bool(initial)
        self.current = initial
        self._file = file
        self._seen = _state(file)
        self._fixed = initial if file is None else initial.without(KeyRing.read(file))

    def limits(self, owner: str) -> KeyLimits:
        """The limits of a name; those of callers without a key are the server's."""
        return self.current.limits.get(owner, KeyLimits())

    def reload(self) -> frozenset[str]:
        """Read the file again if it has changed. Returns the hashes of the keys that were revoked.

        An invalid file changes nothing; the log says why.
        """
        state = _state(self._file)
        if self._file is None or state == self._seen:
            return frozenset()
        try:
            read = KeyRing.read(self._file)
        except KeyFileError as error:
            log.error("the key file is invalid; the keys stay as they were", extra={"reason": str(error)})
            self._seen = state
            return frozenset()
        before, self.current, self._seen = self.current, self._fixed | read, state
        revoked = frozenset(before.names) - frozenset(self.current.names)
        added = len(frozenset(self.current.names) - frozenset(before.names))
        log.info("the key file was read", extra={"added": added, "revoked": len(revoked)})
        return revoked

    async def watch(self, on_revoked: Callable[[frozenset[str]], None]) -> None:
        """Read the file whenever it changes. on_revoked: called with the hashes of revoked keys, in the event loop."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                revoked = await run_in_threadpool(self.reload)
            except Exception:
                log.exception("defect")
                continue
            if revoked:
                on_revoked(revoked)


def _state(file: Path | None) -> tuple[int, ...]:
    """What differs when a file has changed; a file that is missing, as while it is replaced, has the state ()."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else ()
