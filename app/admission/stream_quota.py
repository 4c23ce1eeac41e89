"""How many event streams and waiting requests each API key may have open. Used in the event loop only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from denoised.app.http.errors import TooBusy
from denoised.app.settings import ApiSettings

LIMIT = "streams_per_key"  # its name among the refusals
RETRY_AFTER = 5  # seconds


class StreamQuota:
    """Counts by the owner of the key. Without API keys, only the server's limit of connections applies.

    refused: where refusals are counted.
    """

    def __init__(self, settings: ApiSettings, refused: Counter[str]) -> None:
        self._most = settings.max_streams_per_key if settings.api_keys else None
        self._refused = refused
        self._open: Counter[str] = Counter()

    @property
    def allowed(self) -> int | None:
        """The most streams and waiting requests of a key; None without API keys."""
        return self._most

    def used(self, owner: str) -> int:
        """How many a key has open in this process."""
        return self._open[owner]

    @contextmanager
    def open(self, owner: str) -> Iterator[None]:
        """Count a stream, or a request that waits for its job, while the context is open.

        Raises:
            TooBusy: when the key has too many of them.
        """
        count = self._open[owner]
        if self._most is not None and count >= self._most:
            self._refused[LIMIT] += 1
            detail = f"{count} event streams and waiting requests of this key are open (allowed: {self._most})"
            raise TooBusy(detail, RETRY_AFTER)
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
