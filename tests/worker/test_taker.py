"""Jobs come while the engine turns: as many as there is room for, none twice, none lost while Redis is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from worker.job import JobRecord, SamplingRequest
from worker.taker import Arrival, Room, Taker

PATIENCE = 10.0


class Hold:
    """A job off a queue."""

    def __init__(self, job: str, model: str) -> None:
        self.job, self.model, self.execution = job, model, f"execution of {job}"
        self.forgotten = False

    def forget(self) -> None:
        self.forgotten = True


class Desk:
    """Queues by model, and what a store says of their jobs; `away` is raised instead of an answer."""

    def __init__(self) -> None:
        self.queues: dict[str, list[tuple[str, int]]] = {"m": [], "other": []}
        self.images: dict[str, int] = {}
        self.over: set[str] = set()
        self.away: Exception | None = None
        self.holds: list[Hold] = []
        self.asked = 0

    def take(self, model: str) -> Any:
        self.asked += 1
        if not self.queues[model]:
            return None
        job, images = self.queues[model].pop(0)
        self.images[job] = images
        self.holds.append(Hold(job, model))
        return self.holds[-1]

    def start(self, job: str, worker: str, numerics: str, execution: str) -> int:
        if self.away is not None:
            raise self.away
        return 0 if job in self.over else 3

    def job(self, job: str) -> JobRecord:
        model = next(hold.model for hold in self.holds if hold.job == job)
        request = SamplingRequest(model, None, None, self.images[job], 0, "ddim", 10, 0.0, 1.0, "png")
        return JobRecord(id=job, owner="", request=request, created_at=0.0)

    def resume_point(self, job: str) -> bytes | None:
        return b"here" if job == "resumed" else None


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def taker(desk: Desk) -> Iterator[Taker]:
    stopping = threading.Event()
    made = Taker(desk, {"m": "n", "other": "n"}, desk.take, "w", lambda: None, stopping)  # type: ignore[arg-type]
    made.start()
    yield made
    stopping.set()
    made.join(PATIENCE)
    assert not made.is_alive()


def come(taker: Taker, count: int) -> list[Arrival]:
    """That many arrivals, offering no more room."""
    found: list[Arrival] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < end:
        found += taker.arrivals() if len(taker._arrivals) >= count - len(found) else []
        time.sleep(0.005)
    return found


def test_jobs_come_until_their_images_fill_the_room(desk: Desk, taker: Taker) -> None:
    desk.queues["m"] = [("a", 2), ("b", 3), ("c", 1), ("d", 1)]
    taker.offer({"m": Room(4, one_more=True), "other": Room(4, one_more=True)})
    assert [arrival.record.id for arrival in come(taker, 2)] == ["a", "b"]
    time.sleep(0.3)
    assert taker.arrivals() == []
    assert desk.queues["m"] == [("c", 1), ("d", 1)], "they stay for workers with room"


def test_without_a_lane_one_job_comes_each_time_to_wait_for_one(desk: Desk, taker: Taker) -> None:
    desk.queues["m"] = [("a", 1), ("b", 1), ("c", 1)]
    for job in ("a", "b"):
        taker.offer({"m": Room(0, one_more=True)})
        assert [arrival.record.id for arrival in come(taker, 1)] == [job]
    taker.offer({"m": Room(0, one_more=False)})
    time.sleep(0.3)
    assert taker.arrivals() == []


def test_an_attempt_has_its_number_and_where_an_earlier_one_was_saved(desk: Desk, taker: Taker) -> None:
    desk.queues["m"] = [("fresh", 1), ("resumed", 1)]
    taker.offer({"m": Room(2, one_more=False)})
    fresh, resumed = come(taker, 2)
    assert (fresh.record.attempt, fresh.resume_point) == (3, None)
    assert (resumed.hold.job, resumed.resume_point) == ("resumed", b"here")


def test_who_is_woken_does_not_wait_until_empty_queues_are_asked_again(desk: Desk, taker: Taker) -> None:
    taker.offer({"m": Room(1, one_more=False)})
    while desk.asked < 1:
        time.sleep(0.005)
    desk.queues["m"] = [("a", 1)]
    taker.wake()
    assert [arrival.record.id for arrival in come(taker, 1)] == ["a"]


def test_a_job_that_is_over_is_forgotten(desk: Desk, taker: Taker) -> None:
    desk.queues["m"], desk.over = [("over", 1), ("a", 1)], {"over"}
    taker.offer({"m": Room(1, one_more=False)})
    assert [arrival.record.id for arrival in come(taker, 1)] == ["a"]
    assert [hold.forgotten for hold in desk.holds] == [True, False]


def test_a_job_whose_beginning_redis_did_not_confirm_is_begun_when_it_is_back(
    desk: Desk, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.taker.AWAY_SECONDS", 0.05)
    desk.queues["m"], desk.away = [("a", 1), ("b", 1)], redis.exceptions.ConnectionError("gone")
    taker.offer({"m": Room(2, one_more=False)})
    time.sleep(0.3)
    assert len(desk.holds) == 1, "nothing more is taken off the queue meanwhile"
    desk.away = None
    assert [arrival.record.id for arrival in come(taker, 2)] == ["a", "b"]


def test_the_engine_is_not_held_while_redis_hangs(desk: Desk, taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(desk, "start", lambda *_: answered.wait(PATIENCE) and 3)
    desk.queues["m"] = [("a", 1)]
    taker.offer({"m": Room(1, one_more=False)})
    while not desk.holds:
        time.sleep(0.005)
    started = time.monotonic()
    for _ in range(100):
        assert taker.arrivals() == []
        taker.offer({"m": Room(1, one_more=False)})
    assert time.monotonic() - started < PATIENCE / 2
    answered.set()
    assert [arrival.record.id for arrival in come(taker, 1)] == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_its_thread_is_the_engines_to_know(desk: Desk, taker: Taker) -> None:
    desk.take = lambda model: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    taker._take = desk.take
    taker.offer({"m": Room(1, one_more=False)})
    taker.join(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        taker.arrivals()
