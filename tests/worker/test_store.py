"""The store over a real Valkey: changes happen once, whole and in order; what is over stays as it is."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from worker.errors import StoreUnavailable
from worker.job import TERMINAL, Image, JobRecord, SamplingRequest, WorkerReport
from worker.store import Store, Write, connect, ending

Create = Callable[..., JobRecord]
IMAGE = Image(index=0, seed=7, width=4, height=4, format="png", sha256="0" * 64)


def finish(record: JobRecord, attempt: int, number: int, status: str = "succeeded") -> Write:
    write = Write(record.id, attempt=attempt, number=number, images={0: b"picture"}, image_count=record.request.n)
    write.end(status)  # type: ignore[arg-type]
    return write


def keys_of(client: redis.Redis, job_id: str) -> dict[str, int]:
    """All keys of a job with the seconds they have left; −1 = for ever."""
    return {key.decode(): client.ttl(key) for key in client.scan_iter(f"denoised:job:{job_id}*")}


def seqs(events: Sequence[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]


def terminal_events(store: Store, job_id: str) -> list[str]:
    return [event["type"] for event in store.events(job_id) if event["type"] in TERMINAL]


@pytest.mark.parametrize(
    "record",
    [
        JobRecord("a", "", SamplingRequest("m", None, None, 1, 2**53 - 1, "ddim", 1, 0.0, 1.0, "png"), 1.25),
        JobRecord(
            "b",
            "0123456789abcdef",
            SamplingRequest("Ж", 3, "スニーカー 🐈", 4, 0, "ddim", 1000, 0.1, 7.5, "webp", 5, "both"),
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


def test_a_job_that_nobody_made_is_none(store: Store) -> None:
    assert store.job("nobody") is None
    assert store.cancel("nobody") is None
    assert store.image("nobody", 0) is None
    assert store.events("nobody") == []
    assert store.last_seq("nobody") == 0
    assert store.start("nobody", "worker", "fake") == 0
    assert not store.write(Write("nobody", attempt=1, number=1, fields={"step": 1}))
    assert store.job("nobody") is None


def test_an_id_is_given_to_one_job_only(store: Store, create: Create) -> None:
    record = create()
    with store.client.pipeline() as pipeline:
        assert not store.reserve(record.id, pipeline)


def test_of_two_who_reserve_one_id_at_once_one_creates_it(store: Store, create: Create) -> None:
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
    assert seqs(store.events("contested")) == [1]


def test_seq_has_no_gaps_however_many_write_at_once(store: Store, create: Create) -> None:
    record = create()
    attempt = store.start(record.id, "worker", "fake")

    def write(number: int) -> bool:
        who = attempt if number % 2 else 0
        events = [{"type": "progress", "writer": number}, {"type": "frame", "writer": number}]
        return store.write(Write(record.id, attempt=who, number=10_000 if who == 0 else number, events=events))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(0, 400, 2)))
    assert all(written)
    events = store.events(record.id, count=5000)
    assert seqs(events) == list(range(1, 2 + 1 + 400))
    writers = [event["writer"] for event in events[2:]]
    assert writers[::2] == writers[1::2], "the events of one write stand together"
    assert store.last_seq(record.id) == len(events)


def test_events_can_be_read_in_pages(store: Store, create: Create) -> None:
    record = create()
    store.write(Write(record.id, events=[{"type": "progress", "step": k} for k in range(25)]))
    pages, after = [], 0
    while page := store.events(record.id, after, count=10):
        pages.append(seqs(page))
        after = page[-1]["seq"]
    assert pages == [list(range(1, 11)), list(range(11, 21)), list(range(21, 27))]


def test_an_event_is_the_one_of_the_contract(store: Store, create: Create) -> None:
    """The HTTP contract: {"seq", "type", "job", "attempt", …}, text in any script."""
    record = create()
    store.start(record.id, "worker-я", "fake")
    queued, started = store.events(record.id)
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
            attempt = store.start(record.id, "worker", "fake")
            together = threading.Barrier(3)

            def end(write: Write, together: threading.Barrier = together) -> bool:
                together.wait()
                return store.write(write)

            def cancel(job_id: str, together: threading.Barrier = together) -> str:
                together.wait()
                after = store.cancel(job_id)
                assert after is not None
                return after.status

            done = pool.submit(end, finish(record, attempt, 1))
            failed = pool.submit(end, ending(record, "failed", {"code": "worker_lost", "message": str(k)}))
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
def test_what_is_over_stays_as_it_is(status: str, store: Store, create: Create) -> None:
    record = create()
    attempt = store.start(record.id, "worker", "fake")
    assert store.write(finish(record, attempt, 1, status))
    before = (store.job(record.id), store.events(record.id), store.image(record.id, 0))
    late = Write(record.id, attempt, 2, fields={"step": 9}, events=[{"type": "progress"}], images={0: b"other"})
    assert not store.write(late)
    assert not store.write(replace(late, attempt=0))
    for other in TERMINAL:
        assert not store.write(finish(record, attempt, 3, other))
    assert store.start(record.id, "another", "fake") == 0
    store.fail(record, "worker_lost", "too late")
    after_cancel = store.cancel(record.id)
    assert after_cancel is not None
    assert after_cancel.status == status
    assert (store.job(record.id), store.events(record.id), store.image(record.id, 0)) == before


def test_an_attempt_that_is_over_writes_nothing(store: Store, create: Create) -> None:
    """rq#2424: a worker that was taken for dead comes back with its result."""
    record = create()
    first = store.start(record.id, "one", "fake")
    store.write(Write(record.id, first, 1, fields={"step": 3}, events=[{"type": "progress", "step": 3}]))
    second = store.start(record.id, "two", "other-kernels")
    assert (first, second) == (1, 2)
    restarted = store.job(record.id)
    assert restarted is not None
    assert (restarted.attempt, restarted.step, restarted.images) == (2, 0, ())
    assert restarted.numerics == "other-kernels"
    before = store.events(record.id)
    assert not store.write(finish(record, first, 2))
    assert store.image(record.id, 0) is None
    assert store.job(record.id) == restarted
    assert store.events(record.id) == before
    assert store.write(finish(record, second, 1))
    assert [event["attempt"] for event in store.events(record.id)] == [1, 1, 1, 2, 2]


def test_a_write_that_is_repeated_is_applied_once(store: Store, create: Create) -> None:
    """A reply was lost: the writer sends the same again."""
    record = create()
    attempt = store.start(record.id, "worker", "fake")
    write = Write(record.id, attempt, 1, fields={"step": 1}, events=[{"type": "progress", "step": 1}])
    assert store.write(write)
    assert store.write(write)
    assert [event["type"] for event in store.events(record.id)] == ["queued", "started", "progress"]


def test_writes_of_several_jobs_in_one_go_fail_and_succeed_each_by_itself(store: Store, create: Create) -> None:
    going, over = create(), create()
    attempts = [store.start(record.id, "worker", "fake") for record in (going, over)]
    store.cancel(over.id)
    writes = [
        Write(record.id, attempt, 1, fields={"step": 2})
        for record, attempt in zip((going, over), attempts, strict=True)
    ]
    assert store.write_all(writes) == [True, False]
    assert store.write_all([]) == []


def test_a_job_that_was_given_back_is_queued_and_its_old_worker_silent(store: Store, create: Create) -> None:
    record = create()
    first = store.start(record.id, "one", "fake")
    back = Write(record.id, first, 1, fields={"step": 0}, events=[{"type": "queued"}], status="queued")
    assert store.write(back)
    after = store.job(record.id)
    assert after is not None
    assert after.status == "queued"
    assert not store.write(finish(record, first, 2))
    assert store.start(record.id, "two", "fake") == 2


def test_a_job_its_events_and_pictures_expire_together_once_it_is_over(client: redis.Redis, create: Create) -> None:
    store = Store(client, result_ttl=3600)
    record = create(n=3)
    attempt = store.start(record.id, "worker", "fake")
    store.write(Write(record.id, attempt, 1, images={0: b"a", 1: b"b"}, image_count=3))
    assert set(keys_of(client, record.id).values()) == {-1}, "a job that goes on does not expire"
    last = Write(record.id, attempt, 2, images={2: b"c"}, image_count=3)
    last.end("succeeded")
    store.write(last)
    left = keys_of(client, record.id)
    assert len(left) == 2 + 3
    assert all(3000 < seconds <= 3600 for seconds in left.values()), left


def test_nothing_of_an_expired_job_is_left(client: redis.Redis, create: Create, wait_for: Callable[..., None]) -> None:
    store = Store(client, result_ttl=1)
    record = create(owner="me")
    store.write(finish(record, store.start(record.id, "worker", "fake"), 1))
    wait_for(lambda: store.job(record.id) is None, "the job to expire")
    wait_for(lambda: not keys_of(client, record.id), "its keys to go")
    assert store.jobs("me", 10) == []
    assert client.zcard("denoised:jobs:me") == 0


def test_an_idempotency_key_stands_for_whoever_claimed_it_first(store: Store, client: redis.Redis) -> None:
    assert store.claim("me", "key", "job-1", "body-1") == ("job-1", "body-1")
    assert store.claim("me", "key", "job-2", "body-1") == ("job-1", "body-1")
    assert store.claim("me", "key", "job-3", "body-3") == ("job-1", "body-1")
    assert store.claim("you", "key", "job-4", "body-4") == ("job-4", "body-4")
    (ttl,) = {client.ttl(key) for key in client.scan_iter("denoised:idempotency:me:*")}
    assert 86_000 < ttl <= 86_400


def test_many_claims_at_once_have_one_winner(store: Store) -> None:
    together = threading.Barrier(8)

    def claim(k: int) -> str:
        together.wait()
        return store.claim("me", "key", f"job-{k}", "body")[0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(claim, range(8)))) == 1


def report(name: str, *models: str) -> WorkerReport:
    return WorkerReport(name, [{"name": model} for model in models], 16, 0, 0, None)


def test_workers_appear_with_their_report_and_vanish_with_their_lease(
    store: Store, wait_for: Callable[..., None]
) -> None:
    store.report(report("b", "shoes"), ttl=600)
    store.report(report("a", "hats", "shoes"), ttl=0.2)
    assert [worker.name for worker in store.workers() if worker.name == "b"] == ["b"]
    wait_for(lambda: [worker.name for worker in store.workers()] == ["b"], "the lease of a to run out")
    assert store.workers() == [report("b", "shoes")]
    store.forget_worker("b")
    assert store.workers() == []
    assert store.known_models() == ["hats", "shoes"], "what was ever served is remembered"


def test_jobs_are_listed_newest_first_page_by_page(store: Store, create: Create) -> None:
    made = [create(f"job-{k:02}", owner="me", created_at=1000.0 + k / 7) for k in range(25)]
    create("other", owner="you", created_at=2000.0)
    pages: list[list[str]] = []
    before: float | None = None
    while page := store.jobs("me", 10, before):
        pages.append([record.id for record in page])
        before = page[-1].created_at
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [name for page in pages for name in page] == [record.id for record in reversed(made)]


def test_a_page_is_full_although_jobs_before_it_have_expired(client: redis.Redis, store: Store, create: Create) -> None:
    for k in range(30):
        create(f"job-{k:02}", owner="me", created_at=1000.0 + k)
    for k in range(10, 28):
        client.delete(f"denoised:job:job-{k:02}")
    assert [record.id for record in store.jobs("me", 5)] == ["job-29", "job-28", "job-09", "job-08", "job-07"]
    assert client.zcard("denoised:jobs:me") == 12


def test_a_ticket_works_once_and_not_for_ever(store: Store, client: redis.Redis) -> None:
    store.issue_ticket("t", "me", 30)
    assert 0 < client.ttl("denoised:ticket:t") <= 30
    assert store.redeem_ticket("t") == "me"
    assert store.redeem_ticket("t") is None


CALLS: list[Callable[[Store], object]] = [
    lambda store: store.ping(),
    lambda store: store.job("a"),
    lambda store: store.jobs("me", 5),
    lambda store: store.start("a", "worker", "fake"),
    lambda store: store.write(Write("a")),
    lambda store: store.cancel("a"),
    lambda store: store.image("a", 0),
    lambda store: store.events("a"),
    lambda store: store.last_seq("a"),
    lambda store: store.claim("me", "key", "a", "body"),
    lambda store: store.report(report("w", "m"), 1.0),
    lambda store: store.forget_worker("w"),
    lambda store: store.workers(),
    lambda store: store.known_models(),
    lambda store: store.issue_ticket("t", "me", 1),
    lambda store: store.redeem_ticket("t"),
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_every_method_says_that_redis_is_away(call: Callable[[Store], object], tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="Redis does not answer"):
        call(Store(connect(f"unix://{tmp_path}/nobody.sock", timeout=0.9)))


def test_a_redis_that_accepts_and_never_answers_is_away_within_two_seconds() -> None:
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


def test_a_redis_without_memory_left_is_away_and_forgets_nothing(
    client: redis.Redis, store: Store, create: Create
) -> None:
    """rq#1280: at maxmemory nothing new is written, and what was accepted is still known."""
    record = create()
    attempt = store.start(record.id, "worker", "fake")
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable):
            store.claim("me", "key", "job", "body")
        with pytest.raises(StoreUnavailable):
            store.write(Write(record.id, attempt, 1, fields={"step": 1}))
        held = store.job(record.id)
    finally:
        client.config_set("maxmemory", "0")
    assert held is not None
    assert held.status == "running"
    assert store.write(finish(record, attempt, 1))


def test_what_is_stored_of_a_job_is_text_and_json_only(client: redis.Redis, create: Create) -> None:
    """Nothing in Redis is ever executed: no pickle, whoever reads it."""
    record = create(label=1)
    fields = client.hgetall(f"denoised:job:{record.id}")
    assert json.loads(fields[b"request"])["label"] == 1
    assert all(value.decode("utf-8").isprintable() for value in fields.values())
