"""The settings of the front end: one frozen object, read once from the command line and the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from denoised.app.http.api_keys import KeyRing
from denoised.app.webhooks.webhook_settings import WebhookSettings
from denoised.jobs.results.settings import ResultSettings

# Bytes.
MAX_BODY = 8 * 1024 * 1024  # of a picture, or of a request with pictures
MAX_JSON_BODY = 256 * 1024  # of JSON without pictures
MAX_SOCKET_MESSAGE = MAX_BODY
PING_SECONDS = 15.0  # between pings of a quiet stream


@dataclass(frozen=True)
class ApiSettings:
    """Settings of one front end.

    Attributes:
        api_keys: hashes of the keys that are accepted at the start; none = only local programs are served.
        api_keys_file: where some of them come from; it is read again when it changes.
        allowed_hosts, allowed_origins: accepted in addition to the local ones.
        max_wait: seconds for which a client may wait for a job.
        max_queue, max_queue_per_key: the most jobs that may wait; None = half of `max_queue` per API key.
        queue_limit, queue_limit_per_key: the most network evaluations that may wait.
        max_streams_per_key: the most event streams and waiting requests of one API key at once.
        max_input_bytes_per_key: the most bytes of pictures that jobs of one API key start from and that are stored.
        max_attempts: of a job.
        result_ttl: seconds for which the results of an ended job are kept.
        results: where they are kept.
        webhooks: who may receive them.
        queue_without_worker: whether jobs are accepted for a model that was served before and has no live worker now.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: KeyRing = field(default_factory=KeyRing)
    api_keys_file: Path | None = None
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    allowed_origins: frozenset[str] = field(default_factory=frozenset)
    max_wait: float = 60.0
    max_queue: int = 1000
    max_queue_per_key: int | None = None
    queue_limit: int = 100_000
    queue_limit_per_key: int = 50_000
    max_streams_per_key: int = 256
    max_input_bytes_per_key: int = 256 * 1024 * 1024
    max_attempts: int = 3
    result_ttl: int = 86_400
    results: ResultSettings = field(default_factory=ResultSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    queue_without_worker: bool = False

    @property
    def queue_share(self) -> int:
        """The most jobs of one API key that may wait."""
        return max(1, self.max_queue // 2) if self.max_queue_per_key is None else self.max_queue_per_key
