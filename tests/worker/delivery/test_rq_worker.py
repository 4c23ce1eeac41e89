"""The real worker as a process over a real Valkey: jobs end, whoever cancels, dies or meddles."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Queue

from denoised.jobs import redis_keys as keys
from denoised.jobs.record import TERMINAL
from denoised.worker.delivery.rq_worker import BatchingWorker
from denoised.worker.settings import WorkerSettings
from tests.harness import Harness


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    """Empty at first; one worker serves `fake` and `other` all the while, four lanes, quickly."""
    shop = Harness(valkey_url, tmp_path_factory.mktemp("shop"))
    shop.client.flushall()
    shop.worker("fake", "other", max_batch=4)
    yield shop
    shop.close()


def events(shop: Harness, job_id: str) -> list[str]:
    return [event["type"] for event in shop.events(job_id)]


def test_jobs_of_all_kinds_finish_beside_each_other(shop: Harness) -> None:
    """Two models, more images than lanes, other steps and samplers; equal requests give equal bytes
    (stable-diffusion-webui#376, diffusers#7851)."""
    asked: list[dict[str, Any]] = [
        {"steps": 12, "label": 1, "n": 3, "sampler": "ddpm"},
        {"steps": 1, "seed": 3},
        {"steps": 7, "eta": 0.5, "label": 2, "guidance_scale": 3.0, "preview_every": 2},
        {"steps": 30, "model": "other", "format": "webp"},
        {"steps": 5, "model": "other", "n": 6, "seed": 11},
    ]
    first = [shop.submit(**fields) for fields in asked]
    again = [shop.submit(**fields) for fields in reversed(asked)]
    pictures = [shop.sha256(job_id) for job_id in first]
    assert pictures == [shop.sha256(job_id) for job_id in reversed(again)]
    assert [len(images) for images in pictures] == [3, 1, 1, 1, 6]
    for job_id in (*first, *again):
        record = shop.job(job_id)
        assert (record.step, record.attempt) == (record.request.steps, 1)
        assert [event["type"] for event in shop.store.events.read(job_id) if event["type"] in TERMINAL] == ["succeeded"]


def test_nothing_of_rq_is_left_of_a_job_that_is_over(shop: Harness) -> None:
    job_id = shop.submit()
    shop.finished(job_id)
    shop.until(lambda: shop.forgotten(job_id), "RQ to forget the job")
    names = shop.client.scan_iter("rq:*")
    lists = [name for name in names if shop.client.type(name) == b"list"]
    assert all(job_id.encode() not in shop.client.lrange(name, 0, -1) for name in lists)


def test_a_job_is_taken_in_three_round_trips_and_leaves_the_queue_with_its_lease(
    shop: Harness, fake_model: type[Any]
) -> None:
    """One that asks what has been in the queue's place, one that reads RQ's job, one transaction."""
    ids = [shop.submit(model="untaken") for _ in range(3)]
    worker = BatchingWorker({"untaken": fake_model("untaken")}, shop.client, shop.store, WorkerSettings())
    deliveries, reads = [worker._take("untaken")], []
    for _ in ids[1:]:
        before = shop.client.info("stats")["total_reads_processed"]
        shop.client.info("stats")
        idle = shop.client.info("stats")["total_reads_processed"] - before
        deliveries.append(worker._take("untaken"))
        reads.append(shop.client.info("stats")["total_reads_processed"] - before - idle)
    assert min(reads) <= 3 + 1, "the last is that of the question itself"
    taken = [delivery for delivery in deliveries if delivery is not None]
    assert [(delivery.job, delivery.more) for delivery in taken] == list(zip(ids, (True, True, False), strict=True))
    held = [entry.decode().partition(":")[0] for entry in shop.client.zrange("rq:wip:untaken", 0, -1)]
    assert sorted(held) == sorted(ids)
    assert shop.client.llen("rq:queue:untaken:intermediate") == 0
    assert worker._take("untaken") is None
    for delivery in taken:
        delivery.ack()
    assert all(shop.forgotten(job_id) for job_id in ids)


def test_a_worker_says_what_it_serves(shop: Harness) -> None:
    shop.until(lambda: shop.store.workers.live(), "the worker's report")
    (report,) = shop.store.workers.live()
    assert [card["name"] for card in report.models] == ["fake", "other"]
    assert report.max_batch == 4
    shop.until(lambda: shop.store.workers.live()[0].counters["jobs"] >= 1, "a report after the job")
    counters = shop.store.workers.live()[0].counters
    assert counters["evaluations"] >= counters["turns"] >= 1
    assert counters["turn_seconds"] > 0
    assert 1 <= counters["images"] <= counters["lanes"]
    assert counters["queue_seconds"] >= 0


def test_a_job_that_fails_does_not_stop_the_others(shop: Harness) -> None:
    """diffusers#9007: class 3 of these models comes out as NaN."""
    lame, sound = shop.submit(label=3, steps=9), shop.submit(label=1, steps=9)
    failed = shop.finished(lame)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "nan_output"
    assert shop.finished(sound).status == "succeeded"


def test_a_request_that_no_plan_can_be_made_for_fails_and_says_so(shop: Harness) -> None:
    """The front end refuses it; one that came in otherwise ends too."""
    record = shop.finished(shop.submit(sampler="unheard-of"))
    assert record.status == "failed"
    assert record.error is not None
    assert record.error["code"] == "unservable"
    assert "unheard-of" in record.error["message"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process' memory from /proc (Linux)")
def test_after_memory_ran_out_the_next_job_is_done_and_the_memory_is_back(shop: Harness) -> None:
    """stable-diffusion-webui#13871, twenty times: a job that never fits fails, one that fits in parts and one beside
    them do not; and none of the 64 MiB that were taken each time stays."""
    worker = shop.worker("narrow", max_batch=8, hungry=2, most=2)
    expected = [shop.sha256(shop.submit(model="narrow", label=1, steps=2, seed=seed))[0] for seed in range(7, 11)]
    held = []
    for _ in range(20):
        jobs = [shop.submit(model="narrow", label=label, steps=2, n=n) for label, n in ((1, 4), (2, 1))]
        assert shop.sha256(jobs[0]) == expected
        assert (shop.finished(jobs[1]).error or {}).get("code") == "out_of_memory"
        assert shop.finished(shop.submit(model="narrow", label=1)).status == "succeeded"
        held.append(worker.resident())
    assert max(held) < 1.05 * held[0], held
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_that_was_canceled_while_it_waited_never_starts(shop: Harness) -> None:
    """rq#2160: as the front end cancels, and with the id left in RQ's queue."""
    for removed in (True, False):
        job_id = shop.submit(model="nobody")
        shop.store.cancel(job_id)
        if removed:
            shop.queue.remove(shop.job(job_id))
            assert shop.rq_queue("nobody").count == 0
        else:
            shop.client.rename("rq:queue:nobody", "rq:queue:fake")
            shop.until(lambda: shop.rq_queue("fake").count == 0, "the queue to be empty")
        shop.finished(shop.submit())
        assert events(shop, job_id) == ["queued", "canceled"]


def test_enqueue_and_cancel_at_the_same_moment_end_as_one_or_the_other(shop: Harness) -> None:
    """ComfyUI#2566, rq#2160: forty races; what was canceled has no picture, and no other job is hit."""
    bystander = shop.submit(steps=40)
    jobs = [shop.submit(steps=2, seed=k) for k in range(40)]
    for job_id in jobs:
        shop.store.cancel(job_id)
        shop.queue.remove(shop.job(job_id))
    for job_id in jobs:
        record = shop.finished(job_id)
        kinds = events(shop, job_id)
        assert kinds[-1] == record.status
        assert sum(kind in TERMINAL for kind in kinds) == 1
        assert (record.status == "succeeded") == (len(record.images) == 1)
    assert shop.finished(bystander).status == "succeeded"


def test_a_payload_of_pickle_is_not_executed_and_stops_nobody(shop: Harness, tmp_path: Path) -> None:
    """anemoi-core#1416, rq#2389: who can write to Redis still cannot make a worker run code."""
    canary = tmp_path / "canary"
    for at_front in (True, False):
        queue = Queue("fake", connection=shop.client)
        queue.enqueue(os.system, f"touch {canary}", at_front=at_front, meta={"note": 1})
    shop.client.hset("rq:job:torn", mapping={"data": b"\x80\x04garbage", "created_at": "not a date", "origin": "fake"})
    shop.client.rpush("rq:queue:fake", "torn", "no-such-job")
    assert shop.finished(shop.submit()).status == "succeeded"
    shop.until(lambda: shop.rq_queue("fake").count == 0, "the queue to be empty")
    assert not canary.exists()
    assert shop.workers[0].exit_code() is None


def test_a_record_that_cannot_be_read_stops_nobody(shop: Harness) -> None:
    """A job of a newer front end, say, that requires a field that this worker does not know; or a damaged record."""
    newer, damaged = shop.submit(model="nobody"), shop.submit(model="nobody")
    shop.client.hset(keys.job(newer), "requires", '["from_the_future"]')
    shop.client.hset(keys.job(damaged), "request", '{"model": "fake"}')
    shop.client.rename("rq:queue:nobody", "rq:queue:fake")
    assert shop.finished(shop.submit()).status == "succeeded"
    assert shop.workers[0].exit_code() is None
    error = shop.finished(newer).error or {}
    assert (error["code"], "from_the_future" in error["message"]) == ("unservable", True)
    assert shop.client.hget(keys.job(damaged), "status") == b"failed"
    shop.until(lambda: shop.forgotten(newer) and shop.forgotten(damaged), "RQ to forget both")


def test_a_job_is_canceled_while_it_runs(shop: Harness) -> None:
    """It leaves the batch: what comes behind it in the only lane gets its turn."""
    worker = shop.worker("slow", seconds=0.02, max_batch=1, job_timeout=600)
    job_id, behind = shop.submit(model="slow", steps=1000, preview_every=50), shop.submit(model="slow", steps=2)
    shop.until(lambda: shop.running(job_id), "the job to run")
    after = shop.store.cancel(job_id)
    assert after is not None
    assert after.status == "canceled"
    assert shop.finished(behind).status == "succeeded"
    record = shop.job(job_id)
    assert record.step < 1000
    assert events(shop, job_id)[-1] == "canceled"
    assert record.images == ()
    shop.until(lambda: forgotten(shop, job_id), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_canceled_jobs_that_wait_for_a_turn_leave_nothing_behind(shop: Harness) -> None:
    """They leave the batch before a turn of theirs is written, so that no refused write tells the worker."""
    worker = shop.worker("crowded", seconds=0.02, max_batch=1, job_timeout=600)
    jobs = [shop.submit(model="crowded", steps=1000) for _ in range(6)]
    shop.until(lambda: all(shop.job(job_id).status == "running" for job_id in jobs), "all to be taken")
    for job_id in jobs:
        shop.store.cancel(job_id)
    for job_id in jobs:
        shop.until(lambda job_id=job_id: forgotten(shop, job_id), "RQ to forget the job")  # type: ignore[misc]
        assert shop.job(job_id).status == "canceled"
    assert not list(shop.client.scan_iter("rq:execution*"))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_that_is_late_fails_and_its_neighbour_goes_on(shop: Harness) -> None:
    """rq#2454: a deadline between evaluations, not a signal."""
    worker = shop.worker("late", seconds=0.02, job_timeout=2)
    late, quick = shop.submit(model="late", steps=1000), shop.submit(model="late", steps=3)
    record = shop.finished(late)
    assert record.status == "failed"
    assert record.error == {"code": "timeout", "message": "the job was not done within 2 s"}
    assert shop.finished(quick).status == "succeeded"
    shop.until(lambda: shop.forgotten(late), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_is_not_late_because_it_shares_the_lane(shop: Harness) -> None:
    """Its own evaluations count: three of 0.7 s each on one lane, and 1.5 s allowed."""
    worker = shop.worker("shared", seconds=0.02, job_timeout=1.5, max_batch=1)
    jobs = [shop.submit(model="shared", steps=35) for _ in range(3)]
    assert [shop.finished(job_id).status for job_id in jobs] == ["succeeded"] * 3
    ends = [shop.job(job_id).finished_at or 0.0 for job_id in jobs]
    starts = [shop.job(job_id).started_at or 0.0 for job_id in jobs]
    assert max(ends) - min(starts) > 1.5
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_long_jobs_hold_up_neither_a_short_one_nor_another_model(shop: Harness) -> None:
    """More of 1,000 steps than lanes; of the other model's, as many as it may have, and more in its queue."""
    worker = shop.worker("marathon", "sprint", seconds=0.02, max_batch=2)
    long = [shop.submit(model="marathon", steps=1000) for _ in range(3)]
    long += [shop.submit(model="sprint", steps=1000) for _ in range(3)]
    shop.until(lambda: all(shop.running(job_id) for job_id in long), "all of them to run")
    short = [shop.submit(model=model, steps=5) for model in ("marathon", "sprint")]
    assert [shop.finished(job_id).status for job_id in short] == ["succeeded"] * 2
    crowd = [shop.submit(model="marathon", steps=1000, n=8) for _ in range(11)]
    shop.until(lambda: shop.rq_queue("marathon").count == 3, "the batch to be full")
    assert shop.finished(shop.submit(model="sprint", steps=5)).status == "succeeded"
    assert not any(shop.job(job_id).terminal for job_id in (*long, *crowd))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert {shop.job(job_id).status for job_id in (*long, *crowd)} == {"queued"}


def test_a_worker_told_to_stop_finishes_the_short_job_and_gives_back_the_long_one(shop: Harness) -> None:
    worker = shop.worker("both", seconds=0.02)
    long, short = shop.submit(model="both", steps=1000, n=4), shop.submit(model="both", steps=30)
    shop.until(lambda: shop.running(long) and shop.running(short), "both to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert (shop.job(short).status, shop.job(short).attempt) == ("succeeded", 1)
    assert shop.job(long).status == "queued"
    assert shop.rq_queue("both").get_job_ids() == [long]


def test_a_worker_told_to_stop_gives_a_long_job_back_and_another_finishes_it(shop: Harness) -> None:
    """rq#2236, chatwoot#15886: SIGTERM; same id, same bytes."""
    asked: dict[str, Any] = {"steps": 1000, "sampler": "ddpm", "label": 2, "n": 2, "model": "long"}
    worker = shop.worker("long", seconds=0.05)
    job_id = shop.submit(**asked)
    shop.until(lambda: shop.running(job_id), "the job to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = shop.job(job_id)
    assert record.status == "queued"
    assert record.step > 0
    assert shop.rq_queue("long").get_job_ids() == [job_id]
    assert record.losses == 0
    assert all(report.models[0]["name"] != "long" for report in shop.store.workers.live())
    shop.worker("long")
    again = shop.submit(**asked)
    assert shop.sha256(job_id) == shop.sha256(again)
    assert shop.job(job_id).attempt == 2
    kinds = [kind for kind in events(shop, job_id) if kind not in ("progress", "image")]
    assert kinds == ["queued", "started", "queued", "started", "succeeded"]
    shop.until(lambda: shop.lines(job_id)[-1]["event"] == "job over", "the log's last line of it")
    lines = shop.lines(job_id)
    assert [line["event"] for line in lines] == ["job started", "job requeued", "job started", "job over"]
    assert [line.get("step") for line in lines] == [None, record.step, None, None]
    assert {line["request_id"] for line in lines} == {f"for {job_id}"}


def test_a_job_whose_resume_point_cannot_be_used_begins_anew_and_the_log_says_why(shop: Harness) -> None:
    job_id = shop.submit(model="anew")
    shop.client.hset(keys.job(job_id), "numerics", "fake")
    shop.client.set(keys.resume(job_id), b"no resume point")
    shop.worker("anew")
    assert shop.finished(job_id).status == "succeeded"
    (line,) = [line for line in shop.lines(job_id) if line["event"] == "resume point unusable"]
    assert line["request_id"] == f"for {job_id}"
    assert line["reason"]


def test_a_worker_told_to_stop_finishes_what_is_nearly_done(shop: Harness) -> None:
    worker = shop.worker("short", seconds=0.01)
    job_id = shop.submit(model="short", steps=40)
    shop.until(lambda: shop.running(job_id) or shop.job(job_id).terminal, "the job to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = shop.job(job_id)
    assert (record.status, record.attempt) == ("succeeded", 1)


def test_a_job_that_rq_hands_to_its_own_worker_again_is_done_all_the_same(shop: Harness) -> None:
    """A lease ran out while its worker was only slow, and the same worker takes the job once more."""
    worker = shop.worker("twice", seconds=0.02)
    job_id = shop.submit(model="twice", steps=40, n=8, sampler="ddpm", preview_every=1, preview="both")
    shop.until(lambda: shop.running(job_id), "the job to run")
    for _ in range(5):
        shop.rq_queue("twice").push_job_id(job_id)
        shop.client.publish("denoised:model:twice", job_id)
        shop.until(lambda: shop.rq_queue("twice").count == 0, "the worker to take it")
    record = shop.finished(job_id)
    assert record.status == "succeeded", record.error
    assert len(record.images) == 8
    assert [kind for kind in events(shop, job_id) if kind in TERMINAL] == ["succeeded"]
    shop.until(lambda: shop.forgotten(job_id), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_taken_from_a_slow_worker_is_not_lost_with_the_next_one(shop: Harness) -> None:
    """One lane each: the second worker takes the job over, the first stops at it, the second is killed."""
    for _ in range(2):
        shop.worker("passed-on", seconds=0.05, lease=2, max_batch=1)
    job_id = shop.submit(model="passed-on", steps=60)
    shop.until(lambda: shop.running(job_id), "the job to run")
    shop.until(lambda: sum(r.models[0]["name"] == "passed-on" for r in shop.store.workers.live()) == 2, "both workers")
    shop.rq_queue("passed-on").push_job_id(job_id)
    shop.client.publish("denoised:model:passed-on", job_id)
    shop.until(lambda: shop.job(job_id).attempt >= 2 and shop.running(job_id), "the second to take it")
    *_, started = (event for event in shop.store.events.read(job_id) if event["type"] == "started")
    pid = int(shop.client.hget(f"rq:worker:{started['worker']}", "pid") or 0)
    assert pid in {hand.pid for hand in shop.workers}
    shop.until(
        lambda: all(r.trajectories == 0 for r in shop.store.workers.live() if r.name != started["worker"]), "room"
    )
    os.kill(pid, signal.SIGKILL)
    assert shop.finished(job_id).status == "succeeded"
    assert shop.job(job_id).attempt >= 3
    shop.until(lambda: shop.forgotten(job_id), "RQ to forget the job")


def test_a_job_on_its_last_chance_runs_apart_and_its_neighbours_come_back_unharmed(shop: Harness) -> None:
    """Twice its worker was lost: should it be its doing, the third one takes nobody along."""
    worker = shop.worker("apart", seconds=0.02)
    others = [shop.submit(model="apart", steps=150, sampler="ddpm", seed=seed, label=1) for seed in range(3)]
    shop.until(lambda: all(shop.running(job_id) for job_id in others), "the others to run")
    worker.signal(signal.SIGSTOP)
    suspect = shop.submit(model="apart", steps=120, sampler="ddpm", label=1)
    shop.client.hset(f"denoised:job:{suspect}", "losses", 2)
    worker.signal(signal.SIGCONT)
    shop.until(lambda: shop.running(suspect), "its first step")
    statuses, waiting = [shop.job(job_id).status for job_id in others], shop.rq_queue("apart").get_job_ids()
    if shop.job(suspect).losses:  # not cleared yet when we looked
        assert (statuses, waiting) == (["queued"] * 3, others)
    assert [shop.finished(job_id).status for job_id in (suspect, *others)] == ["succeeded"] * 4
    assert [(shop.job(job_id).attempt, shop.job(job_id).losses) for job_id in others] == [(2, 0)] * 3
    (quarantined,) = [line for line in shop.lines(suspect) if line["event"] == "job quarantined"]
    assert quarantined["request_id"] == f"for {suspect}"
    assert shop.job(suspect).losses == 0, "it got on: cleared, and the others came back while it still ran"
    starts = [event for job_id in others for event in shop.events(job_id) if event["type"] == "started"]
    assert len(starts) == 6
    again = [shop.submit(model="apart", steps=150, sampler="ddpm", seed=seed, label=1) for seed in range(3)]
    assert [shop.sha256(job_id) for job_id in others] == [shop.sha256(job_id) for job_id in again]


def forgotten(shop: Harness, job_id: str) -> bool:
    """Whether RQ knows nothing of a job any more, but for what a last heartbeat leaves to expire."""
    return all(shop.client.ttl(key) != -1 for key in shop.client.scan_iter(f"rq:*{job_id}*"))
