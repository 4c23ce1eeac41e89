"""The objects that all routes share, created once per app."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from denoised.app.admission.catalog import Catalog
from denoised.app.admission.picture_slots import PictureSlots
from denoised.app.admission.queue.job_queue import JobQueue
from denoised.app.admission.quotas import Admission
from denoised.app.admission.stream_quota import StreamQuota
from denoised.app.http.http_metrics import HttpMetrics
from denoised.app.http.live_keys import LiveKeys
from denoised.app.http.middleware.auth import OWNER_SCOPE_KEY
from denoised.app.job_access.rendering_slots import RenderingSlots
from denoised.app.settings import ApiSettings
from denoised.app.streaming.relay import Relay
from denoised.app.streaming.stream_reader import BLOCK_MS
from denoised.app.webhooks.sender import WebhookSender
from denoised.jobs.redis.connection import connect
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.sweeper import Sweeper
from denoised.jobs.store.event_log import EventLog
from denoised.jobs.store.store import Store
from denoised.jobs.store.store_connection import StoreConnection

COMMAND_SECONDS = 0.9  # timeout of one command to Redis, so that a request fails within two seconds
RESULT_SECONDS = 0.9  # timeout of a connection to the place for results


@dataclass
class Services:
    """Created by `create_app`.

    Attributes:
        frames: the events of jobs, over connections with a longer timeout.
        draining: set when the server begins to shut down.
    """

    settings: ApiSettings
    keys: LiveKeys
    store: Store
    catalog: Catalog
    queue: JobQueue
    admission: Admission
    streams: StreamQuota
    relay: Relay
    frames: EventLog
    renderings: RenderingSlots
    metrics: HttpMetrics
    webhooks: WebhookSender
    sweeper: Sweeper | None = None
    picture_slots: PictureSlots = field(default_factory=PictureSlots)
    draining: bool = field(default=False)

    @classmethod
    def create(cls, settings: ApiSettings) -> Services:
        """Create all services without connecting to Redis."""
        client = connect(settings.redis_url, timeout=COMMAND_SECONDS)
        reader = connect(settings.redis_url, timeout=BLOCK_MS / 1000 + 2)
        result_store = ResultStore(settings.results.url, RESULT_SECONDS) if settings.results.url is not None else None
        store = Store(client, settings.result_ttl, settings.results, result_store)
        admission = Admission(settings)
        webhooks = WebhookSender(store, settings.webhooks)
        return cls(
            settings=settings,
            keys=LiveKeys(settings.api_keys, settings.api_keys_file),
            store=store,
            catalog=Catalog(store, settings.queue_without_worker),
            queue=JobQueue(client, store, settings.max_attempts),
            admission=admission,
            streams=StreamQuota(settings, admission.refused),
            relay=Relay(store, reader, webhooks.wake),
            frames=EventLog(StoreConnection(reader)),
            renderings=RenderingSlots(),
            metrics=HttpMetrics(),
            sweeper=Sweeper(store.results) if result_store is not None else None,
            webhooks=webhooks,
        )

    def drain(self) -> None:
        """Report not ready and end all streams. Call it in the event loop."""
        self.draining = True
        self.relay.close_listeners()

    def start_sweeper(self) -> None:
        """Begin to delete results outside Redis that have expired."""
        if self.sweeper is not None:
            self.sweeper.start()

    def stop_sweeper(self) -> None:
        if self.sweeper is not None:
            self.sweeper.stop()

    def watch_keys(self) -> asyncio.Task[None]:
        """Follow the key file; streams that were opened with a key that is revoked end."""
        return asyncio.create_task(self.keys.watch(self.relay.revoke))


def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


def _owner(connection: HTTPConnection) -> str:
    return str(connection.scope.get(OWNER_SCOPE_KEY, ""))


Serving = Annotated[Services, Depends(_services)]
Owner = Annotated[str, Depends(_owner)]
