"""Decoding off the engine's and the publisher's thread: batches, memory, failures, and what a lost worker leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from denoised.jobs.record import JobRecord
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.jobs.store.store import Store
from denoised.model.serving.card import CardLatent
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.pictures.decoder import TURNS_PER_OLDEST, DecoderThread
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import from_bytes
from denoised.worker.engine.trajectory import Trajectory, trajectories
from denoised.worker.errors import TrajectoryError
from tests.harness import Harness, request

Wait = Callable[..., None]
SECONDS = 60.0
BLACK, WHITE = -1.0, 1.0
BROKEN = 7.0  # latents that the decoder does not take


class LatentFake:
    """A fake model with a decoder that notes its batches, waits for `release`, and has memory for `most` images."""

    def __init__(self, model: Any, limit: int = 4, most: int = 100) -> None:
        self.card = model.card.model_copy(update={"latent": CardLatent(channels=1, downscale=1)})
        self.limit, self.most = limit, most
        self.release = threading.Event()
        self.release.set()
        self.batches: list[list[float]] = []  # the first number of each image
        self.threads: set[str] = set()
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        return self.limit

    def decode(self, x0: torch.Tensor) -> Any:
        self.batches.append(x0.flatten(1)[:, 0].tolist())
        self.threads.add(threading.current_thread().name)
        assert self.release.wait(SECONDS)
        if len(x0) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (x0 == BROKEN).any():
            raise ValueError("broken latents")
        return self._model.decode(x0)

    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class Delivered:
    """What a decoder delivers, by job."""

    def __init__(self) -> None:
        self.pictures: dict[str, list[int]] = {}
        self.errors: dict[str, str] = {}

    def __call__(self, attempt: AttemptState, pictures: Any, error: TrajectoryError | None) -> None:
        self.pictures.setdefault(attempt.id, []).extend(image.index for image, _ in pictures)
        if error is not None:
            self.errors[attempt.id] = error.code


@pytest.fixture
def latent(model: Any) -> LatentFake:
    return LatentFake(model)


@pytest.fixture
def delivered() -> Delivered:
    return Delivered()


@pytest.fixture
def decoder(delivered: Delivered) -> Iterator[DecoderThread]:
    decoder = DecoderThread(delivered)
    yield decoder
    decoder.close()
    decoder.join(SECONDS)


def attempt_of(model: Any, job: str, n: int = 1) -> AttemptState:
    record = JobRecord(id=job, owner="", request=request(model=model.card.name, n=n), created_at=0.0)
    return AttemptState.begin(StartedAttempt(record, None), model, "fake")


def submit(
    decoder: DecoderThread, model: Any, job: str, n: int = 1, level: float = BLACK, side: int = 2
) -> AttemptState:
    attempt = attempt_of(model, job, n)
    decoder.submit(attempt, {index: torch.full((1, side, side), level) for index in range(n)})
    return attempt


def run(decoder: DecoderThread) -> None:
    decoder.start()
    decoder.wait(SECONDS)


def test_images_of_several_jobs_share_batches_up_to_the_limit(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    for job in "abcde":
        submit(decoder, latent, job)
    run(decoder)
    assert latent.sizes() == [4, 1]
    assert delivered.pictures == {job: [0] for job in "abcde"}


def test_a_batch_holds_latents_of_one_shape(decoder: DecoderThread, latent: LatentFake, delivered: Delivered) -> None:
    for job, side in (("a", 2), ("b", 3), ("c", 2)):
        submit(decoder, latent, job, side=side)
    run(decoder)
    assert latent.sizes() == [2, 1]
    assert set(delivered.pictures) == {"a", "b", "c"}


def test_the_jobs_with_the_fewest_pictures_go_first_but_none_waits_for_ever(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    latent.limit = 1
    submit(decoder, latent, "many", n=3, level=WHITE)
    for job in "abcde":
        submit(decoder, latent, job)
    run(decoder)
    order = [batch[0] for batch in latent.batches]
    assert order[: TURNS_PER_OLDEST - 1] == [BLACK] * (TURNS_PER_OLDEST - 1)
    assert order[TURNS_PER_OLDEST - 1] == WHITE
    assert order.count(WHITE) == 3


def test_out_of_memory_a_smaller_batch_is_tried_and_remembered(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    latent.most = 2
    submit(decoder, latent, "many", n=8)
    run(decoder)
    assert delivered.pictures == {"many": list(range(8))}
    assert delivered.errors == {}
    assert latent.sizes() == [4, 2, 2, 2, 2]


def test_an_image_that_does_not_fit_alone_fails_its_job_by_name(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    latent.most = 0
    for job in "ab":
        submit(decoder, latent, job)
    run(decoder)
    assert delivered.errors == {"a": "out_of_memory", "b": "out_of_memory"}
    assert latent.sizes() == [2, 1, 1]


def test_an_image_that_cannot_be_decoded_fails_its_job_alone(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    for job, level in (("a", BLACK), ("broken", BROKEN), ("c", WHITE)):
        submit(decoder, latent, job, level=level)
    run(decoder)
    assert delivered.errors == {"broken": "decoding_failed"}
    assert delivered.pictures == {"a": [0], "broken": [], "c": [0]}


def test_images_of_a_job_that_is_over_are_dropped(
    decoder: DecoderThread, latent: LatentFake, delivered: Delivered
) -> None:
    submit(decoder, latent, "a")
    submit(decoder, latent, "canceled", n=3).over = True
    run(decoder)
    assert latent.sizes() == [1]
    assert set(delivered.pictures) == {"a"}


class Bench:
    """An engine and a publisher, without the queue."""

    def __init__(self, model: LatentFake, store: Store) -> None:
        self.model, self.store = model, store
        self.engine = Engine({"fake": model}, 16)  # type: ignore[dict-item]
        self.over: list[str] = []
        self.publisher = Publisher(store, lambda attempt, last: self.over.append(attempt.id))
        self.attempts: dict[str, AttemptState] = {}
        self.rows = 0

    def begin(self, record: JobRecord) -> list[Trajectory]:
        started = self.store.attempts.start(record.id, "worker", "fake")
        assert started is not None
        attempt = self.attempts[record.id] = AttemptState.begin(started, self.model, "fake")  # type: ignore[arg-type]
        saved = from_bytes(started.resume_point) if started.resume_point is not None else {}
        images = trajectories(started.record, self.model, saved)  # type: ignore[arg-type]
        attempt.resume(images)
        self.engine.batch.admit([image for image in images if not image.finished])
        self.publisher.decode(attempt, {image.index: image.registers[0] for image in images if image.finished})
        return images

    def turns(self) -> None:
        while len(self.engine.batch):
            turn = self.engine.step()
            self.rows += turn.rows
            self.publisher.publish(
                turn, [self.attempts[job] for job in {item.trajectory.job for item in turn.advanced}]
            )

    def status(self, record: JobRecord) -> str:
        job = self.store.job(record.id)
        assert job is not None
        return job.status

    def close(self) -> None:
        self.publisher.finish_decoding(SECONDS)
        self.publisher.close(SECONDS)


@pytest.fixture
def bench(latent: LatentFake, store: Store) -> Bench:
    return Bench(latent, store)


Create = Callable[..., JobRecord]


def test_a_decoder_that_takes_long_delays_neither_the_engine_nor_events_nor_ends_of_other_jobs(
    bench: Bench, create: Create, wait_for: Wait, fake_model: Callable[..., Any]
) -> None:
    bench.model.release.clear()
    slow, later = create(n=2, steps=2), create(steps=6, label=3)
    for record in (slow, later):
        bench.begin(record)
    bench.publisher.start()
    bench.turns()  # the engine comes to its end while the decoder waits
    failed = create(steps=2)
    bench.begin(failed)
    bench.publisher.fail(bench.attempts[failed.id], "timeout", "too long")
    wait_for(lambda: bench.status(failed) == "failed", "another job's end")
    steps = [event.get("step") for event in bench.store.events.read(later.id)]
    assert steps[-1] == 6, "all of its progress is written"
    assert bench.model.threads == {"decoder"}
    assert bench.status(slow) == "running"
    bench.model.release.set()
    bench.close()
    assert [bench.status(record) for record in (slow, later)] == ["succeeded"] * 2


def test_a_job_is_over_before_the_decoder_begins_with_the_next_batch(
    bench: Bench, create: Create, wait_for: Wait
) -> None:
    bench.model.limit = 1
    bench.model.release.clear()
    first, quick, slow = create(steps=1), create(steps=2), create(n=2, steps=2)
    for record in (first, slow, quick):
        bench.begin(record)
    bench.publisher.start()
    bench.turns()
    bench.publisher.flush(SECONDS)  # the decoder has the first image, and the others wait
    bench.model.release.set()
    bench.close()
    assert bench.over == [first.id, quick.id, slow.id]


def test_what_waits_for_the_decoder_is_saved_and_decoded_by_the_next_attempt_without_an_evaluation(
    bench: Bench, create: Create, wait_for: Wait, latent: LatentFake, store: Store
) -> None:
    whole, lost = (create(n=2, steps=3, sampler="ddpm", label=1, seed=5) for _ in range(2))
    bench.begin(whole)
    bench.publisher.start()
    bench.turns()
    wait_for(lambda: bench.status(whole) == "succeeded", "the job to end")
    latent.release.clear()
    bench.begin(lost)
    bench.turns()
    wait_for(lambda: (record := store.job(lost.id)) is not None and record.step == 3, "its last step")
    # This worker is lost here: another one begins anew with what is stored.
    again = Bench(LatentFake(latent._model), store)
    images = again.begin(lost)
    assert [image.finished for image in images] == [True, True]
    again.publisher.start()
    again.turns()
    again.close()
    assert again.rows == 0
    first, second = store.job(whole.id), store.job(lost.id)
    assert first is not None
    assert second is not None
    assert second.status == "succeeded"
    assert second.evaluations == first.evaluations
    assert [image.sha256 for image in first.images] == [image.sha256 for image in second.images]
    latent.release.set()
    bench.close()


def test_a_job_canceled_before_its_pictures_are_decoded_writes_nothing_more(
    bench: Bench, create: Create, wait_for: Wait, store: Store
) -> None:
    bench.model.release.clear()
    record = create(n=2, steps=2)
    bench.begin(record)
    bench.publisher.start()
    bench.turns()
    wait_for(lambda: bench.model.batches, "the decoder to begin")
    store.cancel(record.id)
    bench.publisher.abandon(bench.attempts[record.id])
    wait_for(lambda: bench.over == [record.id], "the job to be over")
    bench.model.release.set()
    bench.close()
    job = store.job(record.id)
    assert job is not None
    assert (job.status, job.images) == ("canceled", ())


# Processes


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("workers"))
    harness.client.flushall()
    yield harness
    harness.close()


def waits_for_decoder(harness: Harness, job: str) -> bool:
    record = harness.job(job)
    return record.status == "running" and record.step == record.request.steps


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_lost_while_it_decodes_loses_no_step(signum: int, harness: Harness) -> None:
    """SIGTERM requeues what the decoder does not finish in time; after SIGKILL the lease expires."""
    name = f"latent-{signum}"
    asked: dict[str, Any] = {"model": name, "steps": 5, "n": 2, "sampler": "ddpm", "label": 1}
    worker = harness.worker(name, decode_seconds=SECONDS, lease=2.0)
    job = harness.submit(**asked)
    harness.until(lambda: waits_for_decoder(harness, job), "the decoder to begin")
    began = time.monotonic()
    worker.signal(signum)
    worker.wait()
    assert time.monotonic() - began < 10
    other = harness.worker(name, decode_seconds=0.0, lease=2.0)
    pictures = harness.sha256(job)
    assert other.evaluations() == []
    assert pictures == harness.sha256(harness.submit(**asked))
    assert harness.job(job).attempt == 2
    other.kill()


def test_a_stopping_worker_finishes_pictures_that_are_nearly_decoded(harness: Harness) -> None:
    worker = harness.worker("decoding", decode_seconds=0.3)
    job = harness.submit(model="decoding", steps=3)
    harness.until(lambda: waits_for_decoder(harness, job), "the decoder to begin")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert (harness.job(job).status, harness.job(job).attempt) == ("succeeded", 1)


def test_decoding_counts_against_a_jobs_timeout(harness: Harness) -> None:
    """Six pictures, one at a time: it fails while some of them wait."""
    worker = harness.worker("long-decoding", decode_seconds=0.5, decoded_at_once=1, job_timeout=1.2)
    job = harness.finished(harness.submit(model="long-decoding", steps=2, n=6))
    assert job.error == {"code": "timeout", "message": "the job was not done within 1.2 s"}
    assert harness.finished(harness.submit(model="long-decoding", steps=2, n=2)).status == "succeeded"
    worker.kill()


def test_no_more_jobs_are_fetched_than_the_decoder_has_slots_for(harness: Harness) -> None:
    worker = harness.worker("full", decode_seconds=SECONDS, max_batch=2)
    decoding = [harness.submit(model="full", steps=2) for _ in range(2)]
    harness.until(lambda: all(waits_for_decoder(harness, job) for job in decoding), "the decoder to be full")
    waiting = [harness.submit(model="full", steps=2) for _ in range(3)]
    time.sleep(1.0)
    assert [harness.job(job).status for job in waiting] == ["queued"] * 3
    worker.kill()
