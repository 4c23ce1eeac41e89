"""Jobs come while the engine turns: as many as there is room for, none twice, none lost while Redis is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import torch

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.store import StartedAttempt
from denoised.worker.delivery.job_fetcher import Capacity, FetchedJob, JobFetcher
from denoised.worker.engine import resume
from denoised.worker.engine.trajectory import Trajectory
from tests.harness import request

PATIENCE = 10.0


class Delivery:
    """A job off a queue."""

    def __init__(self, job: str, model: str, more: bool) -> None:
        self.job, self.model, self.execution, self.more = job, model, f"execution of {job}", more
        self.acked = False

    def ack(self) -> None:
        self.acked = True


class Desk:
    """Queues by model, and what a store says of their jobs; `away` is raised instead of an answer."""

    def __init__(self) -> None:
        self.queues: dict[str, list[tuple[str, int]]] = {"m": [], "other": []}
        self.images: dict[str, int] = {}
        self.asks: dict[str, str] = {}  # the sampler, where it is not ddim
        self.saved: dict[str, bytes] = {}
        self.over: set[str] = set()
        self.unreadable: set[str] = set()
        self.ended: list[tuple[str, Any]] = []
        self.away: Exception | None = None
        self.deliveries: list[Delivery] = []
        self.asked: list[str] = []

    def take(self, model: str) -> Any:
        self.asked.append(model)
        if not self.queues[model]:
            return None
        job, images = self.queues[model].pop(0)
        self.images[job] = images
        self.deliveries.append(Delivery(job, model, more=bool(self.queues[model])))
        return self.deliveries[-1]

    def start_attempt(self, job: str, worker: str, numerics: str, execution: str) -> StartedAttempt | None:
        if self.away is not None:
            raise self.away
        if job in self.unreadable:
            raise RecordError("no request")
        model = next(delivery.model for delivery in self.deliveries if delivery.job == job)
        asked = request(model=model, n=self.images[job], sampler=self.asks.get(job, "ddim"), steps=10)
        record = JobRecord(id=job, owner="", request=asked, created_at=0.0, attempt=3)
        return None if job in self.over else StartedAttempt(record, self.saved.get(job))

    def write(self, write: Any) -> bool:
        self.ended.append((write.job, write.error))
        return True


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def fetcher(desk: Desk, fake_model: Callable[..., Any]) -> Iterator[JobFetcher]:
    stopping = threading.Event()
    models = {name: fake_model(name) for name in desk.queues}
    made = JobFetcher(desk, models, desk.take, "w", lambda: None, stopping)  # type: ignore[arg-type]
    made.start()
    yield made
    stopping.set()
    made.wake()
    made.join(PATIENCE)
    assert not made.is_alive()


def come(fetcher: JobFetcher, count: int) -> list[FetchedJob]:
    """That many arrivals, offering no more room."""
    found: list[FetchedJob] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < end:
        found += fetcher.fetched() if len(fetcher._fetched) >= count - len(found) else []
        time.sleep(0.005)
    return found


def test_jobs_come_until_their_images_fill_the_room(desk: Desk, fetcher: JobFetcher) -> None:
    desk.queues["m"] = [("a", 2), ("b", 3), ("c", 1), ("d", 1)]
    fetcher.set_capacity({"m": Capacity(4, one_more=True), "other": Capacity(4, one_more=True)})
    assert [job.started.record.id for job in come(fetcher, 2)] == ["a", "b"]
    time.sleep(0.3)
    assert fetcher.fetched() == []
    assert desk.queues["m"] == [("c", 1), ("d", 1)], "they stay for workers with room"


def test_without_a_lane_one_job_comes_each_time_to_wait_for_one(desk: Desk, fetcher: JobFetcher) -> None:
    desk.queues["m"] = [("a", 1), ("b", 1), ("c", 1)]
    for job in ("a", "b"):
        fetcher.set_capacity({"m": Capacity(0, one_more=True)})
        assert [job.started.record.id for job in come(fetcher, 1)] == [job]
    fetcher.set_capacity({"m": Capacity(0, one_more=False)})
    time.sleep(0.3)
    assert fetcher.fetched() == []


def test_a_job_comes_with_its_images_where_an_earlier_attempt_saved_them(
    desk: Desk, fetcher: JobFetcher, model: Any, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    (there,) = trajectories_of(model, "resumed", steps=10)
    desk.saved = {
        "resumed": resume.to_bytes({0: resume.ResumePoint(4, there.registers * 2)}),
        "damaged": b"no resume point",
    }
    desk.queues["m"] = [("fresh", 2), ("resumed", 1), ("damaged", 1)]
    fetcher.set_capacity({"m": Capacity(4, one_more=False)})
    fresh, resumed, damaged = come(fetcher, 3)
    assert (fresh.started.record.attempt, [(image.index, image.row) for image in fresh.trajectories]) == (
        3,
        [(0, 0), (1, 0)],
    )
    assert [image.row for image in resumed.trajectories] == [4]
    assert torch.equal(resumed.trajectories[0].registers, there.registers * 2)
    assert [image.row for image in damaged.trajectories] == [0], "it begins anew"
    assert torch.equal(damaged.trajectories[0].registers, there.registers)


def test_a_job_without_a_plan_or_with_an_unreadable_record_fails_alone(desk: Desk, fetcher: JobFetcher) -> None:
    desk.queues["m"], desk.asks, desk.unreadable = [("x", 1), ("y", 1), ("a", 1)], {"x": "unheard-of"}, {"y"}
    fetcher.set_capacity({"m": Capacity(2, one_more=False)})
    assert [job.started.record.id for job in come(fetcher, 1)] == ["a"]
    (unplanned, no_plan), unreadable = desk.ended
    assert (unplanned, no_plan["code"]) == ("x", "unservable")
    assert "unheard-of" in no_plan["message"]
    assert unreadable == ("y", {"code": "unservable", "message": "no request"})
    assert [delivery.acked for delivery in desk.deliveries] == [True, True, False]


def test_who_is_woken_does_not_wait_until_empty_queues_are_asked_again(desk: Desk, fetcher: JobFetcher) -> None:
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    while not desk.asked:
        time.sleep(0.005)
    desk.queues["m"] = [("a", 1)]
    fetcher.wake()
    assert [job.started.record.id for job in come(fetcher, 1)] == ["a"]


def test_a_queue_that_was_empty_is_not_asked_again_before_it_is_due_though_others_are(
    desk: Desk, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.POLL_SECONDS", 10 * PATIENCE)
    fetcher.set_capacity({"m": Capacity(9, one_more=False), "other": Capacity(9, one_more=False)})
    while len(desk.asked) < 2:
        time.sleep(0.005)
    for job in "abc":
        desk.queues["m"] = [(job, 1)]
        fetcher.wake("m")
        assert [job.started.record.id for job in come(fetcher, 1)] == [job]
        fetcher.set_capacity({"m": Capacity(9, one_more=False), "other": Capacity(9, one_more=False)})
    time.sleep(0.1)
    assert desk.asked == ["m", "other", "m", "m", "m"], "nor is one that was empty behind the job that was taken"


def test_an_empty_queue_is_asked_again_in_time_though_nobody_wakes_us(desk: Desk, fetcher: JobFetcher) -> None:
    """The word of a new job may be lost."""
    fetcher.set_capacity({"m": Capacity(1, one_more=False), "other": Capacity(1, one_more=False)})
    while len(desk.asked) < 2:
        time.sleep(0.005)
    desk.queues["other"] = [("a", 1)]
    assert [job.started.record.id for job in come(fetcher, 1)] == ["a"]


def test_a_job_that_is_over_is_forgotten(desk: Desk, fetcher: JobFetcher) -> None:
    desk.queues["m"], desk.over = [("over", 1), ("a", 1)], {"over"}
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert [job.started.record.id for job in come(fetcher, 1)] == ["a"]
    assert [delivery.acked for delivery in desk.deliveries] == [True, False]


def test_a_job_whose_beginning_redis_did_not_confirm_is_begun_when_it_is_back(
    desk: Desk, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.RETRY_SECONDS", 0.05)
    desk.queues["m"], desk.away = [("a", 1), ("b", 1)], redis.exceptions.ConnectionError("gone")
    fetcher.set_capacity({"m": Capacity(2, one_more=False)})
    time.sleep(0.3)
    assert len(desk.deliveries) == 1, "nothing more is taken off the queue meanwhile"
    desk.away = None
    assert [job.started.record.id for job in come(fetcher, 2)] == ["a", "b"]


def test_the_engine_is_not_held_while_redis_hangs(
    desk: Desk, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    start_attempt = desk.start_attempt
    monkeypatch.setattr(desk, "start_attempt", lambda *asked: answered.wait(PATIENCE) and start_attempt(*asked))
    desk.queues["m"] = [("a", 1)]
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    while not desk.deliveries:
        time.sleep(0.005)
    started = time.monotonic()
    for _ in range(100):
        assert fetcher.fetched() == []
        fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert time.monotonic() - started < PATIENCE / 2
    answered.set()
    assert [job.started.record.id for job in come(fetcher, 1)] == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_its_thread_is_the_engines_to_know(desk: Desk, fetcher: JobFetcher) -> None:
    desk.take = lambda model: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    fetcher._take = desk.take
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    fetcher.join(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        fetcher.fetched()
