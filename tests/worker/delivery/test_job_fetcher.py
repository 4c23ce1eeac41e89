"""Jobs are fetched while the engine runs: up to the capacity, none twice, none lost during an outage of Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.record import JobRecord
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.worker.delivery.begun_jobs import FetchedJob
from denoised.worker.delivery.capacity import Capacity
from denoised.worker.delivery.job_fetcher import JobFetcher
from denoised.worker.engine import resume
from denoised.worker.engine.trajectory import Trajectory
from tests.harness import request

TIMEOUT = 10.0


class Delivery:
    """A job off a queue."""

    def __init__(self, job: str, model: str, more: bool) -> None:
        self.job, self.model, self.execution, self.more = job, model, f"execution of {job}", more
        self.acked = self.requeued = False

    def ack(self) -> None:
        self.acked = True

    def requeue(self) -> None:
        self.requeued = True


class FakeStore:
    """Queues by model, and a store with their jobs; `outage` is raised instead of an answer."""

    def __init__(self) -> None:
        self.attempts = self
        self.queues: dict[str, list[tuple[str, int]]] = {"m": [], "other": []}
        self.images: dict[str, int] = {}
        self.fields: dict[str, dict[str, Any]] = {}  # of requests, where they differ
        self.samplers: dict[str, str] = {}  # where it is not ddim
        self.labels: dict[str, int] = {}
        self.digest: str | None = None  # of the model that all jobs were accepted for
        self.saved: dict[str, bytes] = {}
        self.over: set[str] = set()
        self.unreadable: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.ended: list[tuple[str, Any]] = []
        self.unstarted: list[str] = []  # requeued for lack of memory
        self.outage: Exception | None = None
        self.deliveries: list[Delivery] = []
        self.polled: list[str] = []
        self.queued_at = 0.0  # when the jobs were queued

    def take(self, model: str, waited: float = 0.0, passed_over: Iterable[str] = ()) -> Any:
        self.polled.append(model)
        if time.monotonic() - self.queued_at < waited:
            return None
        if not self.queues[model]:
            return None
        job, images = self.queues[model].pop(0)
        self.images[job] = images
        self.deliveries.append(Delivery(job, model, more=bool(self.queues[model])))
        return self.deliveries[-1]

    def start(self, job: str, worker: str, numerics: str, execution: str, resume_limit: int) -> StartedAttempt | None:
        if self.outage is not None:
            raise self.outage
        if job in self.errors:
            raise self.errors[job]
        if job in self.unreadable:
            raise RecordError("no request")
        model = next(delivery.model for delivery in self.deliveries if delivery.job == job)
        given = {"n": self.images[job], "sampler": self.samplers.get(job, "ddim"), "steps": 10}
        given |= {"label": self.labels.get(job), **self.fields.get(job, {})}
        asked = replace(request(model=model, label=self.labels.get(job)), **given)  # type: ignore[arg-type]
        record = JobRecord(id=job, owner="", request=asked, created_at=0.0, attempt=3, digest=self.digest)
        return None if job in self.over else StartedAttempt(record, self.saved.get(job))

    def requeue_unstarted(self, job: str) -> bool:
        self.unstarted.append(job)
        return self.unstarted.count(job) < 3

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


def test_a_model_that_is_not_in_the_batch_is_left_to_other_workers_for_a_moment(
    fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.DEFER_SECONDS", 0.5)
    monkeypatch.setattr("denoised.worker.delivery.capacity.DEFER_SECONDS", 0.5)
    capacity = {"m": Capacity(4, one_more=True, deferred=True), "other": Capacity(4, one_more=True)}
    fetcher.set_capacity(capacity)
    queued_at = fake_store.queued_at = time.monotonic()
    fake_store.queues = {"m": [("a", 1)], "other": [("b", 1)]}
    fetcher.wake()
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["b"], "its model is in the batch"
    fetcher.set_capacity(capacity)
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"], "no other worker has taken it"
    assert 0.5 <= time.monotonic() - queued_at < TIMEOUT


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_job_without_the_memory_to_start_goes_back_and_nothing_more_is_fetched(
    error: Exception, fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch reports bad_alloc as RuntimeError. The engine asks again when its jobs have left it the memory."""
    monkeypatch.setattr("denoised.worker.delivery.job_fetcher.RETRY_SECONDS", 0.05)
    fake_store.errors = {"a": error}
    for attempt in range(1, 4):
        fake_store.queues["m"] = [("a", 1), ("e", 1)]
        fetcher.set_capacity({"m": Capacity(1, one_more=False)})
        fetcher.wake()
        while len(fake_store.unstarted) < attempt or not (fake_store.deliveries[-1].requeued or attempt == 3):
            time.sleep(0.005)
        if attempt < 3:
            assert fetcher.short_of_memory
            assert fetcher.take_fetched() == []
            assert fake_store.queues["m"] == [("e", 1)]
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    fetcher.wake()
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["e"], "after the last attempt of the other"
    assert [delivery.acked for delivery in fake_store.deliveries] == [False, False, True, False]
    assert not fetcher.short_of_memory


def test_a_defect_fails_the_job_and_not_the_thread(fake_store: FakeStore, fetcher: JobFetcher) -> None:
    fake_store.errors = {"d": ZeroDivisionError("a defect")}
    fake_store.queues["m"] = [(name, 1) for name in "de"]
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["e"]
    assert [(job, error["code"]) for job, error in fake_store.ended] == [("d", "internal_error")]


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"n": 17}, "n"), ({"steps": 1001}, "steps"), ({"label": 4}, "label"), ({"preview_every": 11}, "preview_every")],
)
def test_a_request_beyond_the_card_fails_before_anything_is_made_for_it(
    fields: dict[str, Any], named: str, fake_store: FakeStore, fetcher: JobFetcher
) -> None:
    fake_store.queues["m"], fake_store.fields = [("big", 1), ("a", 1)], {"big": fields}
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    assert [job.started.record.id for job in fetch(fetcher, 1)] == ["a"]
    ((job, error),) = fake_store.ended
    assert (job, error["code"]) == ("big", "unservable")
    assert error["message"].startswith(f"{named} of the request is {fields[named]} (allowed for m: up to ")


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
    monkeypatch.setattr("denoised.worker.delivery.capacity.POLL_SECONDS", 10 * TIMEOUT)
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
    start = fake_store.start
    monkeypatch.setattr(fake_store, "start", lambda *asked: answered.wait(TIMEOUT) and start(*asked))
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
    fake_store.take = lambda model, waited, passed_over: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    fetcher._take = fake_store.take
    fetcher.set_capacity({"m": Capacity(1, one_more=False)})
    fetcher.join(TIMEOUT)
    with pytest.raises(ZeroDivisionError):
        fetcher.take_fetched()


def test_a_label_keeps_its_name_when_the_model_has_changed(
    fake_store: FakeStore, fake_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The record holds the index in the model that the job was accepted for."""
    model = fake_model("m")
    changed = {"labels": ["carrot", "bean"], "digest": "bbbb"}
    model.card = model.card.model_copy(update=changed)
    fake_store.queues = {"m": [("carrot", 1), ("bean", 1), ("daikon", 1), ("none", 1)]}
    fake_store.labels = {"carrot": 2, "bean": 1, "daikon": 3}
    fake_store.digest = "aaaa"
    stopping = threading.Event()
    fetcher = JobFetcher(fake_store, {"m": model}, fake_store.take, "w", lambda: None, stopping)  # type: ignore[arg-type]
    fetcher.start()
    with caplog.at_level("WARNING"):
        fetcher.set_capacity({"m": Capacity(4, one_more=False)})
        found = {job.started.record.id: job for job in fetch(fetcher, 3)}
    stopping.set()
    fetcher.join(TIMEOUT)
    labels = {name: job.started.record.request.label for name, job in found.items()}
    assert labels == {"carrot": 0, "bean": 1, "none": None}
    assert found["carrot"].trajectories[0].conditioning["label"].tolist() == [0]
    ((ended, error),) = fake_store.ended
    assert ended == "daikon"
    assert "label = 'daikon' is not a class of m, which has changed since the job was accepted" in str(error)
    assert caplog.text.count("the model has changed since the job was accepted") == 4


def test_jobs_that_wait_together_have_their_prompts_encoded_together(
    fake_store: FakeStore, fetcher: JobFetcher, fake_model: Callable[..., Any]
) -> None:
    (name, model), *_ = fetcher._models.items()
    model.card = model.card.model_copy(update={"prompts": True})  # type: ignore[misc]
    fake_store.queues[name] = [("a", 1), ("b", 2), ("c", 1)]
    fake_store.labels = {"a": 1, "b": 2}
    fake_store.fields = {"a": {"guidance_scale": 2.0}}
    fetcher.set_capacity({name: Capacity(16, True)})
    jobs = fetch(fetcher, 3)
    assert [job.started.record.id for job in jobs] == ["a", "b", "c"]
    assert model.prepared == [4], "one request of each job, and the unconditional one of a"  # type: ignore[attr-defined]


def test_prompts_that_cannot_be_encoded_together_are_encoded_job_by_job(
    fake_store: FakeStore, fetcher: JobFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, model), *_ = fetcher._models.items()
    model.card = model.card.model_copy(update={"prompts": True})  # type: ignore[misc]

    def fail(requests: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "prepare", fail)
    fake_store.queues[name] = [("a", 1), ("b", 1)]
    fetcher.set_capacity({name: Capacity(16, True)})
    assert [job.started.record.id for job in fetch(fetcher, 2)] == ["a", "b"]
