"""The store over a real Valkey: changes happen once, completely and in order; a finished job never changes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from denoised.jobs.errors import RecordError, StoreFull, StoreUnavailable, StoreUnfit
from denoised.jobs.record import TERMINAL, Image, JobRecord
from denoised.jobs.redis.connection import connect
from denoised.jobs.redis.deadline import REDIS_DEADLINE, RedisDeadline
from denoised.jobs.redis.fitness import check_fitness
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store import store_connection
from denoised.jobs.store.job_listing import JobCursor
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, UpdateResult, final_update
from denoised.jobs.worker_report import WorkerReport
from tests.harness import start

Create = Callable[..., JobRecord]
WATCHED = UpdateResult.APPLIED | UpdateResult.WATCHED
IMAGE = Image(index=0, seed=7, width=4, height=4, format="png", sha256="0" * 64)


def finish(record: JobRecord, attempt: int, number: int, status: str = "succeeded") -> JobUpdate:
    write = JobUpdate(record.id, attempt=attempt, number=number, images={0: b"picture"}, image_count=record.request.n)
    write.end(status)  # type: ignore[arg-type]
    return write


def keys_of(client: redis.Redis, job_id: str) -> dict[str, int]:
    """All keys of a job with the seconds they have left; −1 = forever."""
    return {key.decode(): client.ttl(key) for key in client.scan_iter(f"denoised:job:{job_id}*")}


def seqs(events: Sequence[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]


def terminal_events(store: Store, job_id: str) -> list[str]:
    return [event["type"] for event in store.events.read(job_id) if event["type"] in TERMINAL]


SMALLEST = SamplingRequest(
    model="m",
    label=None,
    label_name=None,
    n=1,
    seed=2**53 - 1,
    sampler="ddim",
    steps=1,
    eta=0.0,
    guidance_scale=1.0,
    format="png",
)
LARGEST = SamplingRequest(
    model="Ж",
    label=3,
    label_name="スニーカー 🐈",
    n=4,
    seed=0,
    sampler="ddim",
    steps=1000,
    eta=0.1,
    guidance_scale=7.5,
    format="webp",
    preview_every=5,
    preview="both",
)


@pytest.mark.parametrize(
    "record",
    [
        JobRecord("a", "", SMALLEST, 1.25),
        JobRecord(
            "b",
            "0123456789abcdef",
            LARGEST,
            created_at=1_700_000_000.123456,
            status="failed",
            started_at=1_700_000_001.000001,
            finished_at=1_700_000_002.5,
            attempt=3,
            step=17,
            evaluations=136,
            mean_batch=3.0000000000000004,
            numerics="eager/torch-2.13.0",
            images=(IMAGE, replace(IMAGE, index=1, seed=8)),
            error={"code": "nan_output", "message": "не число"},
        ),
    ],
    ids=["new", "over"],
)
def test_a_record_comes_back_as_it_was(record: JobRecord, store: Store) -> None:
    assert JobRecord.from_fields(record.to_fields()) == record
    with store.client.pipeline() as pipeline:
        assert store.reserve(record.id, pipeline)
        store.create(record, {}, pipeline)
        pipeline.execute()
    assert store.job(record.id) == record


def test_an_unknown_job_is_none(store: Store) -> None:
    assert store.job("nobody") is None
    assert store.cancel("nobody") is None
    assert store.image("nobody", 0) is None
    assert store.events.read("nobody") == []
    assert store.events.last_seq("nobody") == 0
    assert start(store, "nobody", "worker", "fake") == 0
    assert not store.write(JobUpdate("nobody", attempt=1, number=1, fields={"step": 1}))
    assert store.job("nobody") is None


def test_an_id_belongs_to_one_job(store: Store, create: Create) -> None:
    record = create()
    with store.client.pipeline() as pipeline:
        assert not store.reserve(record.id, pipeline)


def test_of_two_reservations_of_one_id_only_one_creates_the_job(store: Store, create: Create) -> None:
    template = create()
    record = replace(template, id="contested")
    with store.client.pipeline() as first, store.client.pipeline() as second:
        assert store.reserve("contested", first)
        assert store.reserve("contested", second)
        for pipeline in (first, second):
            store.create(record, {}, pipeline)
        second.execute()
        with pytest.raises(redis.WatchError):
            first.execute()
    assert seqs(store.events.read("contested")) == [1]


def test_seq_has_no_gaps_under_concurrent_writes(store: Store, create: Create) -> None:
    record = create()
    attempt = start(store, record.id, "worker", "fake")

    def write(number: int) -> bool:
        who = attempt if number % 2 else 0
        events = [{"type": "progress", "writer": number}, {"type": "frame", "writer": number}]
        return store.write(JobUpdate(record.id, attempt=who, number=10_000 if who == 0 else number, events=events))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(0, 400, 2)))
    assert all(written)
    events = store.events.read(record.id, count=5000)
    assert seqs(events) == list(range(1, 2 + 1 + 400))
    writers = [event["writer"] for event in events[2:]]
    assert writers[::2] == writers[1::2], "the events of one write stand together"
    assert store.events.last_seq(record.id) == len(events)


def test_the_result_of_an_update_says_whether_the_job_is_watched(store: Store, create: Create) -> None:
    record = create()
    attempt = start(store, record.id, "worker", "fake")
    assert store.write_all([JobUpdate(record.id, attempt, 1)]) == [UpdateResult.APPLIED]
    assert store.events.watch(record.id) == store.events.last_seq(record.id) == 2
    assert store.write_all([JobUpdate(record.id, attempt, number) for number in (2, 2)]) == [WATCHED] * 2
    taken = store.job(record.id)
    assert taken is not None
    assert taken.watched, "the next attempt knows it from the start"
    store.cancel(record.id)
    assert store.write_all([JobUpdate(record.id, attempt, 3)]) == [UpdateResult(0)]


def test_watching_an_unknown_job_creates_nothing(store: Store) -> None:
    assert store.events.watch("nobody") == 0
    assert store.job("nobody") is None


def test_active_jobs_are_listed_with_their_evaluations(store: Store, create: Create) -> None:
    waiting, going, over = create(), create(), create()
    attempt = start(store, going.id, "worker", "fake")
    store.write(JobUpdate(going.id, attempt, 1, fields={"evaluations": 7}))
    store.cancel(over.id)
    assert store.listing.active_evaluations([waiting.id, going.id, over.id, "nobody"]) == {waiting.id: 0, going.id: 7}
    assert store.listing.active_evaluations([]) == {}


def test_events_can_be_read_in_pages(store: Store, create: Create) -> None:
    record = create()
    store.write(JobUpdate(record.id, events=[{"type": "progress", "step": k} for k in range(25)]))
    pages, after = [], 0
    while page := store.events.read(record.id, after, count=10):
        pages.append(seqs(page))
        after = page[-1]["seq"]
    assert pages == [list(range(1, 11)), list(range(11, 21)), list(range(21, 27))]


def test_an_event_has_the_fields_of_the_contract(store: Store, create: Create) -> None:
    """The HTTP contract: {"seq", "type", "job", "attempt", …}, text in any script."""
    record = create()
    start(store, record.id, "worker-я", "fake")
    queued, started = store.events.read(record.id)
    assert queued == {
        "seq": 1,
        "type": "queued",
        "job": record.id,
        "attempt": 1,
        "queue_position": 0,
        "eta_seconds": None,
    }
    assert started == {"seq": 2, "type": "started", "job": record.id, "attempt": 1, "worker": "worker-я"}


def test_a_cancel_and_an_end_at_the_same_moment_give_one_terminal_event(store: Store, create: Create) -> None:
    """ComfyUI#2566, rq#2160: two hundred races; the status is what the one event says."""
    outcomes = set()
    with ThreadPoolExecutor(3) as pool:
        for k in range(200):
            record = create()
            attempt = start(store, record.id, "worker", "fake")
            together = threading.Barrier(3)

            def end(write: JobUpdate, together: threading.Barrier = together) -> bool:
                together.wait()
                return store.write(write)

            def cancel(job_id: str, together: threading.Barrier = together) -> str:
                together.wait()
                after = store.cancel(job_id)
                assert after is not None
                return after.status

            done = pool.submit(end, finish(record, attempt, 1))
            failed = pool.submit(end, final_update(record, "failed", {"code": "worker_lost", "message": str(k)}))
            canceled = pool.submit(cancel, record.id)
            seen = canceled.result()
            (kind,) = terminal_events(store, record.id)
            after = store.job(record.id)
            assert after is not None
            assert after.status == kind == seen
            assert [done.result(), failed.result()].count(True) == (0 if kind == "canceled" else 1)
            outcomes.add(kind)
    assert len(outcomes) > 1, "the race was never decided otherwise: it tests nothing"


@pytest.mark.parametrize("status", TERMINAL)
def test_a_finished_job_never_changes(status: str, store: Store, create: Create) -> None:
    record = create()
    attempt = start(store, record.id, "worker", "fake")
    assert store.write(finish(record, attempt, 1, status))
    before = (store.job(record.id), store.events.read(record.id), store.image(record.id, 0))
    late = JobUpdate(record.id, attempt, 2, fields={"step": 9}, events=[{"type": "progress"}], images={0: b"other"})
    assert not store.write(late)
    assert not store.write(replace(late, attempt=0))
    for other in TERMINAL:
        assert not store.write(finish(record, attempt, 3, other))
    assert start(store, record.id, "another", "fake") == 0
    assert not store.write(final_update(record, "failed", {"code": "worker_lost", "message": "too late"}))
    after_cancel = store.cancel(record.id)
    assert after_cancel is not None
    assert after_cancel.status == status
    assert (store.job(record.id), store.events.read(record.id), store.image(record.id, 0)) == before


def test_a_superseded_attempt_writes_nothing(store: Store, create: Create) -> None:
    """rq#2424: a worker that was presumed dead delivers its result."""
    record = create()
    first = start(store, record.id, "one", "fake")
    store.write(JobUpdate(record.id, first, 1, fields={"step": 3}, events=[{"type": "progress", "step": 3}]))
    second = start(store, record.id, "two", "other-kernels")
    assert (first, second) == (1, 2)
    restarted = store.job(record.id)
    assert restarted is not None
    assert (restarted.attempt, restarted.step, restarted.images) == (2, 0, ())
    assert restarted.numerics == "other-kernels"
    before = store.events.read(record.id)
    assert not store.write(finish(record, first, 2))
    assert store.image(record.id, 0) is None
    assert store.job(record.id) == restarted
    assert store.events.read(record.id) == before
    assert store.write(finish(record, second, 1))
    assert [event["attempt"] for event in store.events.read(record.id)] == [1, 1, 1, 2, 2]


def test_a_repeated_update_is_applied_once(store: Store, create: Create) -> None:
    """A reply was lost: the writer sends the same again."""
    record = create()
    attempt = start(store, record.id, "worker", "fake")
    write = JobUpdate(record.id, attempt, 1, fields={"step": 1}, events=[{"type": "progress", "step": 1}])
    assert store.write(write)
    assert store.write(write)
    assert [event["type"] for event in store.events.read(record.id)] == ["queued", "started", "progress"]


def test_each_of_several_updates_succeeds_or_fails_alone(store: Store, create: Create) -> None:
    going, over = create(), create()
    attempts = [start(store, record.id, "worker", "fake") for record in (going, over)]
    store.cancel(over.id)
    writes = [
        JobUpdate(record.id, attempt, 1, fields={"step": 2})
        for record, attempt in zip((going, over), attempts, strict=True)
    ]
    assert store.write_all(writes) == [True, False]
    assert store.write_all([]) == []


def test_a_requeued_job_takes_no_more_updates_from_its_old_attempt(store: Store, create: Create) -> None:
    record = create()
    first = start(store, record.id, "one", "fake")
    back = JobUpdate(record.id, first, 1, fields={"step": 0}, events=[{"type": "queued"}], status="queued")
    assert store.write(back)
    after = store.job(record.id)
    assert after is not None
    assert after.status == "queued"
    assert not store.write(finish(record, first, 2))
    assert start(store, record.id, "two", "fake") == 2


def test_a_finished_job_its_events_and_pictures_expire_together(client: redis.Redis, create: Create) -> None:
    store = Store(client, result_ttl=3600)
    record = create(n=3)
    attempt = start(store, record.id, "worker", "fake")
    store.write(JobUpdate(record.id, attempt, 1, images={0: b"a", 1: b"b"}, image_count=3))
    assert set(keys_of(client, record.id).values()) == {-1}, "an active job does not expire"
    last = JobUpdate(record.id, attempt, 2, images={2: b"c"}, image_count=3)
    last.end("succeeded")
    store.write(last)
    left = keys_of(client, record.id)
    assert len(left) == 2 + 3
    assert all(3000 < seconds <= 3600 for seconds in left.values()), left


def test_nothing_of_an_expired_job_is_left(client: redis.Redis, create: Create, wait_for: Callable[..., None]) -> None:
    store = Store(client, result_ttl=1)
    record = create(owner="me")
    store.write(finish(record, start(store, record.id, "worker", "fake"), 1))
    wait_for(lambda: store.job(record.id) is None, "the job to expire")
    wait_for(lambda: not keys_of(client, record.id), "its keys to go")
    assert store.listing.page("me", 10) == []
    assert client.zcard("denoised:jobs:me") == 0


def test_an_idempotency_key_belongs_to_the_first_claim(store: Store, client: redis.Redis) -> None:
    assert store.idempotency.claim("me", "key", "job-1", "body-1") == ("job-1", "body-1")
    assert store.idempotency.claim("me", "key", "job-2", "body-1") == ("job-1", "body-1")
    assert store.idempotency.claim("me", "key", "job-3", "body-3") == ("job-1", "body-1")
    assert store.idempotency.claim("you", "key", "job-4", "body-4") == ("job-4", "body-4")
    (ttl,) = {client.ttl(key) for key in client.scan_iter("denoised:idempotency:me:*")}
    assert 86_000 < ttl <= 86_400


def test_concurrent_claims_have_one_winner(store: Store) -> None:
    together = threading.Barrier(8)

    def claim(k: int) -> str:
        together.wait()
        return store.idempotency.claim("me", "key", f"job-{k}", "body")[0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(claim, range(8)))) == 1


def report(name: str, *models: str) -> WorkerReport:
    return WorkerReport(name, [{"name": model} for model in models], 16, 0, 0, None)


def test_workers_appear_with_their_report_and_vanish_with_their_lease(
    store: Store, wait_for: Callable[..., None]
) -> None:
    store.workers.report(report("b", "shoes"), ttl=600)
    store.workers.report(report("a", "hats", "shoes"), ttl=0.2)
    assert [worker.name for worker in store.workers.live() if worker.name == "b"] == ["b"]
    wait_for(lambda: [worker.name for worker in store.workers.live()] == ["b"], "the lease of a to run out")
    assert store.workers.live() == [report("b", "shoes")]
    store.workers.remove("b")
    assert store.workers.live() == []
    assert store.workers.known_models() == ["hats", "shoes"], "what was ever served is remembered"


def test_a_report_of_a_newer_worker_is_read(client: redis.Redis, store: Store) -> None:
    """While workers are replaced one by one, those of two versions live side by side."""
    store.workers.report(report("newer", "shoes"), ttl=10.0)
    stored = json.loads(client.get("denoised:worker:newer"))  # type: ignore[arg-type]
    client.set("denoised:worker:newer", json.dumps({**stored, "unheard_of": [1]}))
    assert store.workers.live() == [report("newer", "shoes")]


def test_jobs_are_listed_newest_first_page_by_page(store: Store, create: Create) -> None:
    made = [create(f"job-{k:02}", owner="me", created_at=1000.0 + k / 7) for k in range(25)]
    create("other", owner="you", created_at=2000.0)
    pages: list[list[str]] = []
    after: JobCursor | None = None
    while page := store.listing.page("me", 10, after):
        pages.append([record.id for record in page])
        after = JobCursor(page[-1].created_at, page[-1].id)
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [name for page in pages for name in page] == [record.id for record in reversed(made)]


@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_jobs_created_at_one_moment_are_each_listed_once(
    limit: int, client: redis.Redis, store: Store, create: Create
) -> None:
    """By the time alone, a page that ends among them would lose the others, or repeat them."""
    made = [create(f"job-{k:02}", owner="me", created_at=1000.0 + k // 11) for k in range(33)]
    for k in (0, 10, 11, 16, 31):
        client.delete(f"denoised:job:job-{k:02}")
    found: list[str] = []
    while page := store.listing.page(
        "me", limit, JobCursor(1000.0 + int(found[-1][4:]) // 11, found[-1]) if found else None
    ):
        found += [record.id for record in page]
    assert found == [record.id for record in reversed(made) if record.id[4:] not in ("00", "10", "11", "16", "31")]


def test_a_page_is_full_although_some_jobs_have_expired(client: redis.Redis, store: Store, create: Create) -> None:
    for k in range(30):
        create(f"job-{k:02}", owner="me", created_at=1000.0 + k)
    for k in range(10, 28):
        client.delete(f"denoised:job:job-{k:02}")
    assert [record.id for record in store.listing.page("me", 5)] == ["job-29", "job-28", "job-09", "job-08", "job-07"]
    assert client.zcard("denoised:jobs:me") == 12


def test_a_ticket_works_once_and_expires(store: Store, client: redis.Redis) -> None:
    store.tickets.issue("t", "me", 30)
    assert 0 < client.ttl("denoised:ticket:t") <= 30
    assert store.tickets.redeem("t") == "me"
    assert store.tickets.redeem("t") is None


CALLS: list[Callable[[Store], object]] = [
    lambda store: store.ping(),
    lambda store: store.job("a"),
    lambda store: store.listing.page("me", 5),
    lambda store: store.attempts.start("a", "worker", "fake"),
    lambda store: store.attempts.start_alone("a", 1, "w"),
    lambda store: store.write(JobUpdate("a")),
    lambda store: store.cancel("a"),
    lambda store: store.image("a", 0),
    lambda store: store.events.read("a"),
    lambda store: store.attempts.resume_point("a"),
    lambda store: store.attempts.requeue_lost(keys(), 10),
    lambda store: check_fitness(store.client),
    lambda store: store.events.last_seq("a"),
    lambda store: store.idempotency.claim("me", "key", "a", "body"),
    lambda store: store.workers.report(report("w", "m"), 1.0),
    lambda store: store.workers.remove("w"),
    lambda store: store.workers.live(),
    lambda store: store.workers.known_models(),
    lambda store: store.tickets.issue("t", "me", 1),
    lambda store: store.tickets.redeem("t"),
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_every_method_raises_store_unavailable_during_an_outage(
    call: Callable[[Store], object], tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="Redis does not answer"):
        call(Store(connect(f"unix://{tmp_path}/nobody.sock", timeout=0.9)))


def test_a_request_gives_up_when_its_deadline_for_redis_has_passed(store: Store) -> None:
    store.ping()
    token = REDIS_DEADLINE.set(RedisDeadline(0.05))
    with store.reachable():
        time.sleep(0.06)
    with pytest.raises(StoreUnavailable, match="too slowly"):
        store.ping()
    REDIS_DEADLINE.reset(token)
    store.ping()


def test_a_silent_redis_is_unavailable_within_two_seconds() -> None:
    """The best of three tries, so that a busy machine is not taken for a silent store."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = Store(connect(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.9))
        took = []
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.ping()
            took.append(time.monotonic() - started)
            if took[-1] < 2.0:
                break
    assert min(took) < 2.0


def test_after_a_timeout_the_circuit_stays_open_for_a_moment(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty threads that wait a second each are a front end that hangs."""
    now = 100.0
    monkeypatch.setattr(store_connection, "time", SimpleNamespace(monotonic=lambda: now))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lost = Store(connect(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3))
        with pytest.raises(StoreUnavailable, match="Timeout"):
            lost.ping()
    lost.connection.client = client
    now += 0.99 * store_connection.OPEN_SECONDS
    for _ in range(20):
        with pytest.raises(StoreUnavailable, match="a moment ago"):
            lost.ping()
    now += 0.02 * store_connection.OPEN_SECONDS
    lost.ping()


def test_a_redis_without_memory_refuses_writes_and_loses_nothing(
    client: redis.Redis, store: Store, create: Create
) -> None:
    """rq#1280: at maxmemory nothing new is written, and what was accepted is still known."""
    record = create()
    attempt = start(store, record.id, "worker", "fake")
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreFull):
            store.idempotency.claim("me", "key", "job", "body")
        with pytest.raises(StoreFull):
            store.write(JobUpdate(record.id, attempt, 1, fields={"step": 1}))
        held = store.job(record.id)
    finally:
        client.config_set("maxmemory", "0")
    assert held is not None
    assert held.status == "running"
    assert store.write(finish(record, attempt, 1))


def test_a_stored_job_is_text_and_json_only(client: redis.Redis, create: Create) -> None:
    """Nothing in Redis is executable: no pickle, for any reader."""
    record = create(label=1)
    fields = client.hgetall(f"denoised:job:{record.id}")
    assert json.loads(fields[b"request"])["label"] == 1
    assert all(value.decode("utf-8").isprintable() for value in fields.values())


def reads(client: redis.Redis) -> int:
    """How often Redis has read from its connections."""
    return int(client.info("stats")["total_reads_processed"])


def status_of(store: Store, job_id: str) -> tuple[str, int, int]:
    """(status, attempt, step)."""
    record = store.job(job_id)
    assert record is not None
    return record.status, record.attempt, record.step


def saving(record: JobRecord, attempt: int, number: int, step: int, **fields: int) -> JobUpdate:
    fields |= {"step": step, "evaluations": step}
    write = JobUpdate(record.id, attempt, number, fields=dict(fields), image_count=record.request.n)
    write.save(f"point-{attempt}-{step}".encode(), step, step)
    return write


def test_another_attempt_continues_from_the_last_resume_point(store: Store, create: Create) -> None:
    record = create(steps=9)
    first = start(store, record.id, "one", "fake")
    assert store.attempts.resume_point(record.id) is None
    assert store.write(saving(record, first, 1, step=4))
    assert store.write(JobUpdate(record.id, first, 2, fields={"step": 6, "evaluations": 6}))
    assert start(store, record.id, "two", "fake") == 2
    assert status_of(store, record.id) == ("running", 2, 4)
    assert store.attempts.resume_point(record.id) == b"point-1-4"
    assert not store.write(saving(record, first, 3, step=7)), "the first attempt is over"
    assert store.attempts.resume_point(record.id) == b"point-1-4"


def test_images_made_under_other_numerics_are_made_again(store: Store, create: Create) -> None:
    """A picture has the bytes that its one numerics string promises."""
    record = create(n=2, steps=9)
    write = saving(record, start(store, record.id, "one", "fake"), 1, step=4)
    write.images, write.fields["images"] = {0: b"picture"}, json.dumps([IMAGE.__dict__])
    assert store.write(write)
    start(store, record.id, "two", "fake")
    same = store.job(record.id)
    assert same is not None
    assert same.images == (IMAGE,)
    start(store, record.id, "three", "other-kernels")
    other = store.job(record.id)
    assert other is not None
    assert (other.images, other.step, other.evaluations, other.numerics) == ((), 0, 0, "other-kernels")
    assert store.attempts.resume_point(record.id) is None


@pytest.mark.parametrize("end", ["succeeded", "failed", "canceled"])
def test_a_resume_point_expires_and_is_deleted_with_its_job(
    end: str, store: Store, client: redis.Redis, create: Create
) -> None:
    record = create(steps=9)
    attempt = start(store, record.id, "one", "fake")
    store.write(saving(record, attempt, 1, step=4))
    assert 86_000 < client.ttl(f"denoised:job:{record.id}:resume") <= 86_400
    if end == "canceled":
        store.cancel(record.id)
    else:
        store.write(finish(record, attempt, 2, end))
    assert store.attempts.resume_point(record.id) is None


def test_an_execution_starts_once_however_often_it_is_repeated(store: Store, create: Create) -> None:
    """The reply was lost with the connection."""
    record = create()
    assert [start(store, record.id, "one", "fake", "e1") for _ in range(3)] == [1, 1, 1]
    assert start(store, record.id, "two", "fake", "e2") == 2
    assert [event["type"] for event in store.events.read(record.id)] == ["queued", "started", "started"]
    after = store.job(record.id)
    assert after is not None
    assert after.losses == 1


def test_an_attempt_starts_in_one_round_trip_with_its_resume_point(
    store: Store, client: redis.Redis, create: Create
) -> None:
    record = create(steps=9)
    first = start(store, record.id)
    store.write(saving(record, first, 1, step=4))
    before = reads(client)
    begun = store.attempts.start(record.id, "two", "fake")
    assert reads(client) - before <= 2, "the last is that of the question itself"
    assert begun is not None
    assert (begun.record.attempt, begun.record.step, begun.resume_point) == (2, 4, b"point-1-4")


def test_scripts_are_loaded_again_after_redis_has_forgotten_them(
    store: Store, client: redis.Redis, create: Create
) -> None:
    """After a restart of Redis; each operation still happens once."""
    record = create(steps=9)
    client.script_flush()
    begun = store.attempts.start(record.id, "one", "fake")
    assert begun is not None
    assert (begun.record.status, begun.record.attempt) == ("running", 1)
    client.script_flush()
    assert store.write_all([saving(record, 1, number, step=number) for number in (1, 2)]) == [UpdateResult.APPLIED] * 2
    assert status_of(store, record.id) == ("running", 1, 2)
    assert [event["type"] for event in store.events.read(record.id)] == ["queued", "started"]


def test_starting_an_unreadable_job_raises_a_record_error(store: Store, client: redis.Redis, create: Create) -> None:
    record = create()
    client.hset(f"denoised:job:{record.id}", "request", '{"model": "fake"}')
    with pytest.raises(RecordError, match=r"SamplingRequest cannot be read: .*missing"):
        store.attempts.start(record.id, "one", "fake")


def test_a_job_that_keeps_losing_workers_fails(store: Store, create: Create) -> None:
    record = create(steps=9, n=2)
    for attempt in (1, 2, 3):
        assert start(store, record.id, "worker", "fake") == attempt
        assert store.attempts.start_alone(record.id, attempt, "worker")
        assert store.write(JobUpdate(record.id, attempt, 1, fields={"step": 2, "evaluations": 2}))
    assert start(store, record.id, "worker", "fake") == 0
    assert not store.attempts.start_alone(record.id, 3, "worker")
    after = store.job(record.id)
    assert after is not None
    assert (after.status, after.attempt, after.error and after.error["code"]) == ("failed", 3, "worker_lost")
    assert after.finished_at is not None
    assert terminal_events(store, record.id) == ["failed"]
    left = keys_of(store.client, record.id)
    assert len(left) == 2
    assert all(seconds > 0 for seconds in left.values())


def test_only_the_last_attempt_of_a_job_is_quarantined(store: Store, create: Create) -> None:
    record = create()
    seen = []
    for _ in range(3):
        started = store.attempts.start(record.id, "worker", "fake")
        assert started is not None
        seen.append((started.record.losses, started.quarantined, started.record.status))
    assert seen == [(0, False, "running"), (1, False, "running"), (2, True, "queued")]
    assert [event["type"] for event in store.events.read(record.id)] == ["queued", "started", "started"]
    for _ in range(2):  # once more, since the reply was lost
        assert store.attempts.start_alone(record.id, 3, "worker")
    assert [event["attempt"] for event in store.events.read(record.id)] == [1, 1, 2, 3]


def test_a_job_that_saves_progress_has_lost_no_worker_in_a_row(store: Store, create: Create) -> None:
    """However often neighbors kill its worker."""
    record = create(steps=9)
    losses = []
    for attempt in range(1, 9):
        assert start(store, record.id, "worker", "fake") == attempt
        assert store.write(saving(record, attempt, 1, step=attempt))
        after = store.job(record.id)
        assert after is not None
        losses.append(after.losses)
    assert losses == [0] * 8


def test_a_job_that_repeats_what_was_saved_before_makes_no_progress(store: Store, create: Create) -> None:
    record = create(steps=9)
    for attempt in (1, 2, 3):
        assert start(store, record.id, "worker", "fake") == attempt
        assert store.attempts.start_alone(record.id, attempt, "worker")
        assert store.write(saving(record, attempt, 1, step=2))
    assert start(store, record.id, "worker", "fake") == 0


def test_a_job_that_regains_what_it_had_reached_makes_no_progress(store: Store, create: Create) -> None:
    """Its workers die at step 6; the first one had saved step 2 and reported step 5."""
    record = create(steps=9)
    assert start(store, record.id, "worker", "fake") == 1
    assert store.write(saving(record, 1, 1, step=2))
    assert store.write(JobUpdate(record.id, 1, 2, fields={"step": 5, "evaluations": 5}))
    for attempt in (2, 3):
        assert start(store, record.id, "worker", "fake") == attempt
        assert store.attempts.start_alone(record.id, attempt, "worker")
        for step in (3, 4, 5):
            assert store.write(saving(record, attempt, step, step=step))
    assert start(store, record.id, "worker", "fake") == 0, "three workers, as `max_attempts` says"


def test_a_job_that_gets_further_than_at_any_loss_makes_progress(store: Store, create: Create) -> None:
    record = create(steps=9)
    assert start(store, record.id, "worker", "fake") == 1
    assert store.write(JobUpdate(record.id, 1, 1, fields={"step": 5, "evaluations": 5}))
    assert start(store, record.id, "worker", "fake") == 2
    assert store.write(saving(record, 2, 1, step=5))
    before = store.job(record.id)
    assert store.write(saving(record, 2, 2, step=6))
    after = store.job(record.id)
    assert before is not None
    assert after is not None
    assert (before.losses, after.losses) == (1, 0)


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 5])
@pytest.mark.parametrize("numerics", [["fake"], ["fake", "other"]])
def test_a_job_that_kills_at_a_fixed_step_takes_as_many_workers_as_max_attempts_says(
    max_attempts: int, numerics: list[str], store: Store, create: Create
) -> None:
    """The first worker had neither saved nor reported what it did last; the others save each turn. Workers with other
    numerics begin again at the first step, which is no progress either."""
    record = create(steps=9)
    store.client.hset(f"denoised:job:{record.id}", "max_attempts", max_attempts)
    assert start(store, record.id, "worker", numerics[0]) == 1
    assert store.write(JobUpdate(record.id, 1, 1, fields={"step": 2, "evaluations": 2}))
    deaths = 1
    while attempt := start(store, record.id, "worker", numerics[deaths % len(numerics)]):
        assert store.attempts.start_alone(record.id, attempt, "worker")
        begun = store.job(record.id)
        assert begun is not None
        for step in range(begun.step + 1, 7):  # it dies in its seventh
            assert store.write(saving(record, attempt, step, step=step, tracked=1))
        deaths += 1
    assert deaths == max_attempts


def test_a_job_that_no_worker_has_memory_to_start_fails_after_its_attempts(store: Store, create: Create) -> None:
    """Each attempt counts, whether it was written as started or the reply to that did not fit."""
    record = create(steps=9)
    assert start(store, record.id, "one", "fake", "e1") == 1
    assert store.attempts.requeue_unstarted(record.id)
    assert store.attempts.requeue_unstarted(record.id), "before its start: nothing was started"
    assert start(store, record.id, "two", "fake", "e1") == 2, "the same delivery, tried again"
    assert not store.attempts.requeue_unstarted(record.id)
    after = store.job(record.id)
    assert after is not None
    assert (after.status, after.losses, (after.error or {})["code"]) == ("failed", 3, "out_of_memory")
    assert [event["type"] for event in store.events.read(record.id)] == [
        "queued", "started", "queued", "queued", "failed",
    ]  # fmt: skip
    assert not store.attempts.requeue_unstarted(record.id)
    assert not store.attempts.requeue_unstarted("nobody")


def test_a_resume_point_or_picture_larger_than_any_is_not_read(
    store: Store, client: redis.Redis, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to Redis must not fill a process's memory."""
    monkeypatch.setattr("denoised.jobs.store.store.MAX_PICTURE_BYTES", 100)
    monkeypatch.setattr("denoised.jobs.store.record_reader.MAX_PICTURE_BYTES", 100)
    record = create()
    for size, found in ((100, {0: b"x" * 100}), (101, {})):
        client.set(f"denoised:job:{record.id}:image:0", b"x" * size)
        outcome = store.outcome(record.id, pictures=1)
        assert outcome is not None
        assert outcome.pictures == found
        assert store.image(record.id, 0) == found.get(0)
    assert start(store, record.id, "one", "fake", "e1") == 1
    for execution in ("e1", "e2"):
        client.set(f"denoised:job:{record.id}:resume", b"x" * 101)
        begun = store.attempts.start(record.id, "one", "fake", execution, resume_limit=100)
        assert begun is not None
        assert begun.resume_point is None


def test_a_job_whose_worker_is_lost_while_it_waits_to_be_alone_is_not_failed(store: Store, create: Create) -> None:
    record = create()
    for attempt in range(1, 7):
        assert start(store, record.id, "worker", "fake") == attempt
    after = store.job(record.id)
    assert after is not None
    assert (after.status, after.losses) == ("queued", 2)
    assert not store.attempts.start_alone(record.id, 5, "worker")
    assert store.attempts.start_alone(record.id, 6, "worker")
    assert start(store, record.id, "worker", "fake") == 0


def test_a_requeued_job_has_lost_no_worker(store: Store, create: Create) -> None:
    record = create()
    for attempt in range(1, 6):
        assert start(store, record.id, "worker", "fake") == attempt
        assert store.write(JobUpdate(record.id, attempt, 1, status="queued", events=[{"type": "queued"}]))
    after = store.job(record.id)
    assert after is not None
    assert after.losses == 0


def keys(model: str = "fake") -> QueueKeys:
    return QueueKeys(model, f"q:{model}", f"q:{model}:between", f"q:{model}:started", "q:job:")


def taken(client: redis.Redis, record: JobRecord, score: float, execution: str = "e") -> None:
    """As RQ holds a job that a worker has taken."""
    client.hset(f"q:job:{record.id}", "status", "started")
    client.zadd("q:fake:started", {f"{record.id}:{execution}": score})


def test_jobs_of_lost_workers_are_requeued_in_the_order_of_acceptance(
    store: Store, client: redis.Redis, create: Create
) -> None:
    now = time.time()
    jobs = [create(f"job-{k}", created_at=now + k) for k in (3, 1, 0, 2)]
    for k, record in enumerate(jobs):
        taken(client, record, now - 5 + k)
    client.rpush("q:fake", "waiting-a", "waiting-b")
    assert store.attempts.requeue_lost(keys(), grace=10) == 4
    waiting = [name.decode() for name in client.lrange("q:fake", 0, -1)]
    assert waiting == ["job-0", "job-1", "job-2", "job-3", "waiting-a", "waiting-b"]
    assert client.zcard("q:fake:started") == 0
    assert store.attempts.requeue_lost(keys(), grace=10) == 0


def test_held_finished_and_queued_jobs_are_not_requeued(store: Store, client: redis.Redis, create: Create) -> None:
    now = time.time()
    alive, over, waits, two = (create(name) for name in ("alive", "over", "waits", "two"))
    for record, score in ((alive, now + 60), (over, now - 1), (waits, now - 1), (two, now - 1)):
        taken(client, record, score)
    taken(client, two, now + 60, execution="newer")
    client.delete("q:job:over")
    client.rpush("q:fake", "waits")
    assert store.attempts.requeue_lost(keys(), grace=10) == 0
    assert client.lrange("q:fake", 0, -1) == [b"waits"]
    assert sorted(client.zrange("q:fake:started", 0, -1)) == [b"alive:e", b"two:newer"]


def test_a_job_left_in_the_intermediate_queue_is_requeued_after_the_grace_period(
    store: Store, client: redis.Redis, create: Create, wait_for: Callable[..., None]
) -> None:
    """rq#2236: it stands in RQ's intermediate queue and has no lease."""
    stuck, busy = create("stuck"), create("busy")
    for record in (stuck, busy):
        client.hset(f"q:job:{record.id}", "status", "queued")
        client.rpush("q:fake:between", record.id)
    client.rpush("q:fake:between", "nobody")
    taken(client, busy, time.time() + 60)
    assert store.attempts.requeue_lost(keys(), grace=0.3) == 0
    assert client.lrange("q:fake", 0, -1) == []
    wait_for(lambda: store.attempts.requeue_lost(keys(), grace=0.3) == 1, "the job to be collected")
    assert client.lrange("q:fake", 0, -1) == [b"stuck"]
    assert client.lrange("q:fake:between", 0, -1) == [b"busy"]
    assert not client.exists("denoised:between:fake")


def test_each_passage_through_the_intermediate_queue_has_its_own_grace_period(
    store: Store, client: redis.Redis, create: Create
) -> None:
    """How long it stood there counts for one passage only."""
    record = create("often")
    client.hset("q:job:often", "status", "queued")
    for _ in range(4):
        client.rpush("q:fake:between", record.id)
        assert store.attempts.requeue_lost(keys(), grace=0.2) == 0
        client.lrem("q:fake:between", 0, record.id)
        time.sleep(0.15)
        assert store.attempts.requeue_lost(keys(), grace=0.2) == 0


def test_a_redis_that_evicts_keys_is_refused_with_the_setting_named(store: Store, client: redis.Redis) -> None:
    """rq#1280, fleetyards#4335: allkeys-lru, and jobs vanish without a word."""
    check_fitness(client)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreUnfit, match=r"allkeys-lru, allowed: noeviction\).*CONFIG SET maxmemory-policy"):
            check_fitness(client)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_counters_add_up_once_however_often_they_are_reported(store: Store) -> None:
    assert store.workers.totals() == ({}, {})
    for worker, turns in (("a", 3), ("a", 3), ("b", 5), ("a", 7), ("b", 5), ("a", 7)):
        store.workers.add_counters(worker, {"turns": turns, "turn_seconds": turns / 4, "jobs": 0})
    assert store.workers.totals()[0] == {"turns": 12.0, "turn_seconds": 3.0}


def test_concurrent_counters_are_each_added_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: store.workers.add_counters(f"w{k % 4}", {"turns": k // 4 + 1}), range(80)))
    assert store.workers.totals()[0]["turns"] == 4 * 20  # one that is overtaken adds nothing


def test_an_end_is_counted_once_by_status_and_model(store: Store, create: Create) -> None:
    done, gone = create(), create()
    write = finish(done, start(store, done.id, "w", "fake"), 1)
    assert store.write_all([write, write])[0]
    store.write(final_update(done, "canceled"))
    store.cancel(gone.id)
    store.cancel(gone.id)
    model = done.request.model
    assert store.workers.totals()[1] == {("accepted", model): 2, ("succeeded", model): 1, ("canceled", model): 1}


def test_an_unreadable_job_can_be_ended_and_is_counted_without_its_model(store: Store, create: Create) -> None:
    record = create()
    store.client.hset(f"denoised:job:{record.id}", "request", "no JSON")
    write = JobUpdate(record.id)
    write.end("failed", {"code": "unservable", "message": "no"})
    assert store.write(write)
    assert store.workers.totals()[1]["failed", "?"] == 1
