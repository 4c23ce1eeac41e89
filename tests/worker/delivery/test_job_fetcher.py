"""Jobs are fetched while the engine runs: up to the capacity, none twice, none lost during an outage of Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.record import JobRecord
from denoised.jobs.store import StartedAttempt
from denoised.worker.delivery.job_fetcher import Capacity, FetchedJob, JobFetcher
from denoised.worker.engine import resume
from denoised.worker.engine.trajectory import Trajectory
from tests.harness import request

TIMEOUT = 10.0


class Delivery:
    """A job off a queue."""

    def __init__(self, job: str, model: str, more: bool) -> None:
        self.job, self.model, self.execution, self.more = job, model, f"execution of {job}", more
        self.acked = False

    def ack(self) -> None:
        self.acked = True


class FakeStore:
    """Queues by model, and a store with their jobs; `outage` is raised instead of an answer."""

    def __init__(self) -> None:
        self.queues: dict[str, list[tuple[str, int]]] = {"m": [], "other": []}
        self.images: dict[str, int] = {}
        self.samplers: dict[str, str] = {}  # where it is not ddim
        self.saved: dict[str, bytes] = {}
        self.over: set[str] = set()
        self.unreadable: set[str] = set()
        self.ended: list[tuple[str, Any]] = []
        self.outage: Exception | None = None
        self.deliveries: list[Delivery] = []
        self.polled: list[str] = []

    def take(self, model: str) -> Any:
        self.polled.append(model)
        if not self.queues[model]:
            return None
        job, images = self.queues[model].pop(0)
        self.images[job] = images
        self.deliveries.append(Delivery(job, model, more=bool(self.queues[model])))
        return self.deliveries[-1]

    def start_attempt(self, job: str, worker: str, numerics: str, execution: str) -> StartedAttempt | None:
        if self.outage is not None:
            raise self.outage
        if job in self.unreadable:
            raise RecordError("no request")
        model = next(delivery.model for delivery in self.deliveries if delivery.job == job)
        asked = request(model=model, n=self.images[job], sampler=self.samplers.get(job, "ddim"), steps=10)
        record = JobRecord(id=job, owner="", request=asked, created_at=0.0, attempt=3)
        return None if job in self.over else StartedAttempt(record, self.saved.get(job))

    def write(self, write: Any) -> bool:
        self.ended.append((write.job, write.error))
        return True


@pytest.fixture
def fake_store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def fetcher(fake_store: FakeStore, fake_model: Callable[..., Any]) -> Iterator[JobFetcher]:
    stopping = threading.Event()
    models = {name: fake_model(name) for name in fake_store.queues}
    made = JobFetcher(fake_store, models, fake_store.take, "w", lambda: None, stopping)  # type: ignore[arg-type]
    made.start()
    yield made
    stopping.set()
    made.wake()
    made.join(TIMEOUT)
    assert not made.is_alive()


def fetch(fetcher: JobFetcher, count: int) -> list[FetchedJob]:
    """So many fetched jobs; then no more are fetched."""
    found: list[FetchedJob] = []
    end = time.monotonic() + TIMEOUT
    while len(found) < count and time.monotonic() < end:
        found += fetcher.take_fetched() if len(fetcher._fetched) >= count - len(found) else []
        time.sleep(0.005)
    return found


def test_jobs_are_fetched_until_their_images_fill_the_capacity(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fake_store.queues["m"] = [("a", 2), ("b", 3), ("c", 1), ("d", 1)]
    fetcher.set_capacity({"m": Capacity(4, one_more=True), "other": Capacity(4, one_more=True)})
    assert [job.started.record.id for job in fetch(fetcher, 2)] == ["a", "b"]
    time.sleep(0.3)
    assert fetcher.take_fetched() == []
    assert fake_store.queues["m"] == [("c", 1), ("d", 1)], "they stay for workers with capacity"


def test_without_a_free_slot_one_job_is_fetched_to_wait_for_one(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fake_store.queues["m"] = [("a", 1), ("b", 1), ("c", 1)]
    for job in ("a", "b"):
        fetcher.set_capacity({"m": Capacity(0, one_more=True)})
        assert [job.started.record.id for job in fetch(fetcher, 1)] == [job]
    fetcher.set_capacity({"m": Capacity(0, one_more=False)})
    time.sleep(0.3)
    assert fetcher.take_fetched() == []


def test_a_fetched_job_has_its_images_where_an_earlier_attempt_saved_them(
    fake_store: FakeStore, fetcher: JobFetcher, model: Any, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    (there,) = trajectories_of(model, "resumed", steps=10)
    fake_store.saved = {
        "resumed": resume.to_bytes({0: resume.ResumePoint(4, there.registers * 2)}),
        "damaged": b"no resume point",
    }
    fake_store.queues["m"] = [("fresh", 2), ("resumed", 1), ("damaged", 1)]
    fetcher.set_capacity({"m": Capacity(4, one_more=False)})
    fresh, resumed, damaged = fetch(fetcher, 3)
    assert (fresh.started.record.attempt, [(image.index, image.row) for image in fresh.trajectories]) == (
        3,
        [(0, 0), (1, 0)],
    )
    assert [image.row for image in resumed.trajectories] == [4]
    assert torch.equal(resumed.trajectories[0].registers, there.registers * 2)
    assert [image.row for image in damaged.trajectories] == [0], "it starts over"
    assert torch.equal(damaged.trajectories[0].registers, there.registers)


def test_a_job_without_a_plan_or_with_an_unreadable_record_fails_alone(
    fake_store: FakeStore, fetcher: JobFetcher
) -> None:
    fake_store.queues["m"], fake_store.samplers, fake_store.unreadable = (
        [("x", 1), ("y", 1), ("a", 1)],
        {"x": "unheard-of"},
        {"y"},
    )
    fetcher.set_capacity({"m": Capacity(2, one_more=False)})
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]
    (unplanned, no_plan), unreadable = fake_store.ended
    assert (unplanned, no_plan["code"]) == ("x", "unservable")
    assert "unheard-of" in no_plan["message"]
    assert unreadable == ("y", {"code": "unservable", "message": "no request"})
    assert [delivery.acked for delivery in fake_store.deliveries] == [True, True, False]


def test_a_woken_fetcher_does_not_wait_for_the_next_poll(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    while not fake_store.polled:
        time.sleep(0.005)
    fake_store.queues["m"] = [("a", 1)]
    fetcher.wake()
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]


def test_an_empty_queue_is_not_polled_early_because_another_is(
    fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.POLL_SECONDS", 10 * TIMEOUT)
    fetcher.set_capacity({"m": Capacity(9, one_more=False), "other": Capacity(9, one_more=False)})
    while len(fake_store.polled) < 2:
        time.sleep(0.005)
    for job in "abc":
        fake_store.queues["m"] = [(job, 1)]
        fetcher.wake("m")
        assert [job.started.record.id for job in fetch(fetcher, 1)] == [job]
        fetcher.set_capacity({"m": Capacity(9, one_more=False), "other": Capacity(9, one_more=False)})
    time.sleep(0.1)
    assert fake_store.polled == ["m", "other", "m", "m", "m"], "nor is a queue that was empty behind its last job"


def test_an_empty_queue_is_polled_again_without_a_wake(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    """The message about a new job may be lost."""
    fetcher.set_capacity({"m": Capacity(1, one_more=False), "other": Capacity(1, one_more=False)})
    while len(fake_store.polled) < 2:
        time.sleep(0.005)
    fake_store.queues["other"] = [("a", 1)]
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]


def test_a_finished_job_is_acknowledged(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fake_store.queues["m"], fake_store.over = [("over", 1), ("a", 1)], {"over"}
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]
    assert [delivery.acked for delivery in fake_store.deliveries] == [True, False]


def test_a_job_whose_start_redis_did_not_confirm_is_started_after_the_outage(
    fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.RETRY_SECONDS", 0.05)
    fake_store.queues["m"], fake_store.outage = [("a", 1), ("b", 1)], StoreUnavailable("gone")
    fetcher.set_capacity({"m": Capacity(2, one_more=False)})
    time.sleep(0.3)
    assert len(fake_store.deliveries) == 1, "no further job is taken off the queue until then"
    fake_store.outage = None
    assert [job.started.record.id for job in fetch(fetcher, 2)] == ["a", "b"]


def test_the_engine_does_not_wait_for_a_hanging_redis(
    fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    start_attempt = fake_store.start_attempt
    monkeypatch.setattr(fake_store, "start_attempt", lambda *asked: answered.wait(TIMEOUT) and start_attempt(*asked))
    fake_store.queues["m"] = [("a", 1)]
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    while not fake_store.deliveries:
        time.sleep(0.005)
    started = time.monotonic()
    for _ in range(100):
        assert fetcher.take_fetched() == []
        fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert time.monotonic() - started < TIMEOUT / 2
    answered.set()
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_fetchers_thread_is_raised_in_the_engine(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fake_store.take = lambda model: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    fetcher._take = fake_store.take
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    fetcher.join(TIMEOUT)
    with pytest.raises(ZeroDivisionError):
        fetcher.take_fetched()
