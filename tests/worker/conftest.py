"""What the tests of `worker` share: a model of a few exact operations, jobs, and readers of both."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
import torch

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.store import Store
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Turn
from tests.fake_model import FakeModel
from tests.harness import request
from tests.requirements import THREADS

TIMEOUT = 120.0  # seconds; only a hang reaches it


def _trajectories(
    model: FakeModel, job: str | None = None, pictures: dict[str, Any] | None = None, **fields: Any
) -> list[Trajectory]:
    from denoised.worker.engine.trajectory import trajectories

    asked = request(model=model.card.name, **fields)
    record = JobRecord(id=job or uuid.uuid4().hex, owner="", request=asked, created_at=0.0)
    return trajectories(record, model, pictures=pictures or {})


def _turns(engine: Engine) -> Iterator[Turn]:
    while len(engine.batch):
        yield engine.step()


@pytest.fixture(autouse=True, scope="module")
def thread_count() -> Iterator[None]:
    """Use one thread, or as many as OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fake_model() -> type[FakeModel]:
    """The class of the fake models."""
    return FakeModel


@pytest.fixture
def model() -> FakeModel:
    """A fake model that fails never and takes no time."""
    return FakeModel()


@pytest.fixture(scope="session")
def request_of() -> Callable[..., SamplingRequest]:
    """`request_of(**fields)`: four ddim steps without a label unless said otherwise."""
    return request


@pytest.fixture(scope="session")
def trajectories_of() -> Callable[..., list[Trajectory]]:
    """`trajectories_of(model, job, **fields)`: those of one job, created as the worker creates them."""
    return _trajectories


@pytest.fixture(scope="session")
def turns_of() -> Callable[[Engine], Iterator[Turn]]:
    """`turns_of(engine)`: its turns until the batch is empty."""
    return _turns


@pytest.fixture
def store(client: redis.Redis) -> Store:
    """A store of an empty Valkey."""
    return Store(client)


@pytest.fixture
def create(store: Store) -> Callable[..., JobRecord]:
    """`create(job_id, owner, created_at, watched, **request)`: a queued job in the store, in no queue."""

    def create(
        job_id: str | None = None,
        owner: str = "",
        created_at: float | None = None,
        store: Store = store,
        watched: bool = False,
        **fields: Any,
    ) -> JobRecord:
        now = time.time() if created_at is None else created_at
        record = JobRecord(job_id or uuid.uuid4().hex, owner, request(**fields), now, watched=watched)
        with store.client.pipeline() as pipeline:
            assert store.reserve(record.id, pipeline)
            store.create(record, {"queue_position": 0, "eta_seconds": None}, pipeline)
            pipeline.execute()
        return record

    return create


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """`wait_for(condition, what)`: until it holds."""

    def wait(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def kinds_of() -> Callable[[Sequence[dict[str, Any]]], list[str]]:
    """`kinds_of(events)`: their types in order."""
    return lambda events: [event["type"] for event in events]
