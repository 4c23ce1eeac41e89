"""What the routes work with, made once per app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from denoised.app.admission.catalog import Catalog
from denoised.app.admission.job_queue import JobQueue
from denoised.app.admission.quotas import Admission
from denoised.app.http.http_metrics import HttpMetrics
from denoised.app.settings import ApiSettings
from denoised.app.streaming.relay import BLOCK_MS, Relay
from denoised.jobs.connection import connect
from denoised.jobs.store import Store

COMMAND_SECONDS = 0.9  # a request to Redis, so that its absence is told within two


@dataclass
class Services:
    """Made by `create_app`; `draining` is set when the server has been told to stop."""

    settings: ApiSettings
    store: Store
    catalog: Catalog
    queue: JobQueue
    admission: Admission
    relay: Relay
    meters: HttpMetrics
    draining: bool = field(default=False)

    @classmethod
    def connected(cls, settings: ApiSettings) -> Services:
        """Clients are made here; nothing is asked of Redis yet."""
        client = connect(settings.redis_url, timeout=COMMAND_SECONDS)
        reader = connect(settings.redis_url, timeout=BLOCK_MS / 1000 + 2)
        store = Store(client, settings.result_ttl)
        return cls(
            settings=settings,
            store=store,
            catalog=Catalog(store),
            queue=JobQueue(client, store, settings.max_attempts),
            admission=Admission(settings),
            relay=Relay(store, reader),
            meters=HttpMetrics(),
        )

    def drain(self) -> None:
        """No longer ready; streams end. Call it in the event loop."""
        self.draining = True
        self.relay.close_listeners()


def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


def _owner(connection: HTTPConnection) -> str:
    return str(connection.scope.get("denoised_owner", ""))


Serving = Annotated[Services, Depends(_services)]
Owner = Annotated[str, Depends(_owner)]
