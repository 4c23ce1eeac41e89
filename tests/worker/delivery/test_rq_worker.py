"""The real worker as a process over a real Valkey: jobs end, whatever is canceled, killed or damaged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Queue

from denoised.jobs.record import TERMINAL
from denoised.jobs.store import redis_keys as keys
from denoised.worker.delivery.rq_worker import BatchingWorker
from denoised.worker.settings import WorkerSettings
from tests.harness import Harness


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    """Empty at first; one fast worker with four batch slots serves `fake` and `other` throughout."""
    harness = Harness(valkey_url, tmp_path_factory.mktemp("workers"))
    harness.client.flushall()
    harness.worker("fake", "other", max_batch=4)
    yield harness
    harness.close()


def events(harness: Harness, job_id: str) -> list[str]:
    return [event["type"] for event in harness.events(job_id)]


def test_jobs_of_all_kinds_finish_together(harness: Harness) -> None:
    """Two models, more images than slots, various steps and samplers; equal requests give equal bytes
    (stable-diffusion-webui#376, diffusers#7851)."""
    asked: list[dict[str, Any]] = [
        {"steps": 12, "label": 1, "n": 3, "sampler": "ddpm"},
        {"steps": 1, "seed": 3},
        {"steps": 7, "eta": 0.5, "label": 2, "guidance_scale": 3.0, "preview_every": 2},
        {"steps": 30, "model": "other", "format": "webp"},
        {"steps": 5, "model": "other", "n": 6, "seed": 11},
    ]
    first = [harness.submit(**fields) for fields in asked]
    again = [harness.submit(**fields) for fields in reversed(asked)]
    pictures = [harness.sha256(job_id) for job_id in first]
    assert pictures == [harness.sha256(job_id) for job_id in reversed(again)]
    assert [len(images) for images in pictures] == [3, 1, 1, 1, 6]
    for job_id in (*first, *again):
        record = harness.job(job_id)
        assert (record.step, record.attempt) == (record.request.steps, 1)
        assert [event["type"] for event in harness.store.events.read(job_id) if event["type"] in TERMINAL] == [
            "succeeded"
        ]


def test_a_finished_job_leaves_nothing_in_rq(harness: Harness) -> None:
    job_id = harness.submit()
    harness.finished(job_id)
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")
    names = harness.client.scan_iter("rq:*")
    lists = [name for name in names if harness.client.type(name) == b"list"]
    assert all(job_id.encode() not in harness.client.lrange(name, 0, -1) for name in lists)


def test_a_job_is_taken_in_three_round_trips_and_leaves_the_queue_with_its_lease(
    harness: Harness, fake_model: type[Any]
) -> None:
    """One to pop the queue, one to read RQ's job, one transaction."""
    ids = [harness.submit(model="untaken") for _ in range(3)]
    worker = BatchingWorker({"untaken": fake_model("untaken")}, harness.client, harness.store, WorkerSettings())
    deliveries, reads = [worker._take("untaken")], []
    for _ in ids[1:]:
        before = harness.client.info("stats")["total_reads_processed"]
        harness.client.info("stats")
        idle = harness.client.info("stats")["total_reads_processed"] - before
        deliveries.append(worker._take("untaken"))
        reads.append(harness.client.info("stats")["total_reads_processed"] - before - idle)
    assert min(reads) <= 3 + 1, "the last one is of INFO itself"
    taken = [delivery for delivery in deliveries if delivery is not None]
    assert [(delivery.job, delivery.more) for delivery in taken] == list(zip(ids, (True, True, False), strict=True))
    held = [entry.decode().partition(":")[0] for entry in harness.client.zrange("rq:wip:untaken", 0, -1)]
    assert sorted(held) == sorted(ids)
    assert harness.client.llen("rq:queue:untaken:intermediate") == 0
    assert worker._take("untaken") is None
    assert worker._take("untaken", 0.05) is None
    harness.submit(model="untaken")
    assert worker._take("untaken", 60.0) is None, "another worker may take it for a minute"
    time.sleep(0.1)
    delivery = worker._take("untaken", 0.05)
    assert delivery is not None
    delivery.ack()
    for delivery in taken:
        delivery.ack()
    assert all(harness.forgotten(job_id) for job_id in ids)


def test_a_worker_reports_what_it_serves(harness: Harness) -> None:
    harness.until(lambda: harness.store.workers.live(), "the worker's report")
    (report,) = harness.store.workers.live()
    assert [card["name"] for card in report.models] == ["fake", "other"]
    assert report.max_batch == 4
    harness.finished(harness.submit())
    harness.until(lambda: harness.store.workers.live()[0].counters["jobs"] >= 1, "a report after the job")
    counters = harness.store.workers.live()[0].counters
    assert counters["evaluations"] >= counters["turns"] >= 1
    assert counters["turn_seconds"] > 0
    assert 1 <= counters["images"] <= counters["slots"]
    assert counters["queue_seconds"] >= 0


def test_a_job_that_fails_does_not_stop_the_others(harness: Harness) -> None:
    """diffusers#9007: class 3 of these models comes out as NaN."""
    nan_job, sound = harness.submit(label=3, steps=9), harness.submit(label=1, steps=9)
    failed = harness.finished(nan_job)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "nan_output"
    assert harness.finished(sound).status == "succeeded"


def test_a_request_without_a_plan_fails_and_says_why(harness: Harness) -> None:
    """The front end refuses it; one that came in otherwise ends too."""
    record = harness.finished(harness.submit(sampler="unheard-of"))
    assert record.status == "failed"
    assert record.error is not None
    assert record.error["code"] == "unservable"
    assert "unheard-of" in record.error["message"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process' memory from /proc (Linux)")
def test_after_running_out_of_memory_a_worker_does_the_next_job_and_leaks_nothing(harness: Harness) -> None:
    """stable-diffusion-webui#13871, eight times: a job that never fits fails, one that fits in parts and one next to
    them do not; and none of the 64 MiB that were taken each time stays."""
    worker = harness.worker("narrow", max_batch=8, oom_class=2, max_rows=2)
    expected = [harness.sha256(harness.submit(model="narrow", label=1, steps=2, seed=seed))[0] for seed in range(7, 11)]
    held = []
    for _ in range(8):
        jobs = [harness.submit(model="narrow", label=label, steps=2, n=n) for label, n in ((1, 4), (2, 1))]
        assert harness.sha256(jobs[0]) == expected
        assert (harness.finished(jobs[1]).error or {}).get("code") == "out_of_memory"
        assert harness.finished(harness.submit(model="narrow", label=1)).status == "succeeded"
        held.append(worker.resident())
    assert max(held) < 1.05 * held[0], held
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_canceled_in_the_queue_never_starts(harness: Harness) -> None:
    """rq#2160: as the front end cancels, and with the id left in RQ's queue."""
    for removed in (True, False):
        job_id = harness.submit(model="nobody")
        harness.store.cancel(job_id)
        if removed:
            harness.queue.remove(harness.job(job_id))
            assert harness.rq_queue("nobody").count == 0
        else:
            harness.client.rename("rq:queue:nobody", "rq:queue:fake")
            harness.until(lambda: harness.rq_queue("fake").count == 0, "the queue to be empty")
        harness.finished(harness.submit())
        assert events(harness, job_id) == ["queued", "canceled"]


def test_enqueue_and_cancel_at_the_same_moment_end_as_one_or_the_other(harness: Harness) -> None:
    """ComfyUI#2566, rq#2160: forty races; what was canceled has no picture, and no other job is hit."""
    bystander = harness.submit(steps=40)
    jobs = [harness.submit(steps=2, seed=k) for k in range(40)]
    for job_id in jobs:
        harness.store.cancel(job_id)
        harness.queue.remove(harness.job(job_id))
    for job_id in jobs:
        record = harness.finished(job_id)
        kinds = events(harness, job_id)
        assert kinds[-1] == record.status
        assert sum(kind in TERMINAL for kind in kinds) == 1
        assert (record.status == "succeeded") == (len(record.images) == 1)
    assert harness.finished(bystander).status == "succeeded"


def test_a_pickle_payload_is_not_executed_and_stops_no_worker(harness: Harness, tmp_path: Path) -> None:
    """anemoi-core#1416, rq#2389: who can write to Redis still cannot make a worker run code."""
    canary = tmp_path / "canary"
    for at_front in (True, False):
        queue = Queue("fake", connection=harness.client)
        queue.enqueue(os.system, f"touch {canary}", at_front=at_front, meta={"note": 1})
    harness.client.hset(
        "rq:job:torn", mapping={"data": b"\x80\x04garbage", "created_at": "not a date", "origin": "fake"}
    )
    harness.client.rpush("rq:queue:fake", "torn", "no-such-job")
    assert harness.finished(harness.submit()).status == "succeeded"
    harness.until(lambda: harness.rq_queue("fake").count == 0, "the queue to be empty")
    assert not canary.exists()
    assert harness.workers[0].exit_code() is None


def test_an_unreadable_record_fails_its_job_and_stops_no_worker(harness: Harness) -> None:
    """A job of a newer front end, say, that requires a field that this worker does not know; or a damaged record."""
    newer, damaged = harness.submit(model="nobody"), harness.submit(model="nobody")
    harness.client.hset(keys.job(newer), "requires", '["from_the_future"]')
    harness.client.hset(keys.job(damaged), "request", '{"model": "fake"}')
    harness.client.rename("rq:queue:nobody", "rq:queue:fake")
    assert harness.finished(harness.submit()).status == "succeeded"
    assert harness.workers[0].exit_code() is None
    error = harness.finished(newer).error or {}
    assert (error["code"], "from_the_future" in error["message"]) == ("unservable", True)
    assert harness.client.hget(keys.job(damaged), "status") == b"failed"
    harness.until(lambda: harness.forgotten(newer) and harness.forgotten(damaged), "RQ to forget both")


def test_a_job_is_canceled_while_it_runs(harness: Harness) -> None:
    """It leaves the batch, and the next job gets the only slot."""
    worker = harness.worker("slow", seconds=0.02, max_batch=1, job_timeout=600)
    job_id, behind = harness.submit(model="slow", steps=1000, preview_every=50), harness.submit(model="slow", steps=2)
    harness.until(lambda: harness.running(job_id), "the job to run")
    after = harness.store.cancel(job_id)
    assert after is not None
    assert after.status == "canceled"
    assert harness.finished(behind).status == "succeeded"
    record = harness.job(job_id)
    assert record.step < 1000
    assert events(harness, job_id)[-1] == "canceled"
    assert record.images == ()
    harness.until(lambda: forgotten(harness, job_id), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_canceled_jobs_that_wait_for_a_turn_leave_nothing_behind(harness: Harness) -> None:
    """They leave the batch before a turn of theirs is written, so that no refused write tells the worker."""
    worker = harness.worker("crowded", seconds=0.02, max_batch=1, job_timeout=600)
    jobs = [harness.submit(model="crowded", steps=1000) for _ in range(6)]
    harness.until(lambda: all(harness.job(job_id).status == "running" for job_id in jobs), "all to be taken")
    for job_id in jobs:
        harness.store.cancel(job_id)
    for job_id in jobs:
        harness.until(lambda job_id=job_id: forgotten(harness, job_id), "RQ to forget the job")  # type: ignore[misc]
        assert harness.job(job_id).status == "canceled"
    assert not list(harness.client.scan_iter("rq:execution*"))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_that_exceeds_its_timeout_fails_alone(harness: Harness) -> None:
    """rq#2454: a deadline between evaluations, not a signal."""
    worker = harness.worker("late", seconds=0.02, job_timeout=2)
    late, quick = harness.submit(model="late", steps=1000), harness.submit(model="late", steps=3)
    record = harness.finished(late)
    assert record.status == "failed"
    assert record.error == {"code": "timeout", "message": "the job was not done within 2 s"}
    assert harness.finished(quick).status == "succeeded"
    harness.until(lambda: harness.forgotten(late), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_time_spent_on_other_jobs_does_not_count_against_a_timeout(harness: Harness) -> None:
    """Its own evaluations count: three of 0.7 s each in one slot, and 1.5 s allowed."""
    worker = harness.worker("shared", seconds=0.02, job_timeout=1.5, max_batch=1)
    jobs = [harness.submit(model="shared", steps=35) for _ in range(3)]
    assert [harness.finished(job_id).status for job_id in jobs] == ["succeeded"] * 3
    ends = [harness.job(job_id).finished_at or 0.0 for job_id in jobs]
    starts = [harness.job(job_id).started_at or 0.0 for job_id in jobs]
    assert max(ends) - min(starts) > 1.5
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_long_jobs_delay_neither_a_short_one_nor_another_model(harness: Harness) -> None:
    """More of 1,000 steps than slots; of the other model's, as many as it may have, and more in its queue."""
    worker = harness.worker("marathon", "sprint", seconds=0.02, max_batch=2)
    long = [harness.submit(model="marathon", steps=1000) for _ in range(3)]
    long += [harness.submit(model="sprint", steps=1000) for _ in range(3)]
    harness.until(lambda: all(harness.running(job_id) for job_id in long), "all of them to run")
    short = [harness.submit(model=model, steps=5) for model in ("marathon", "sprint")]
    assert [harness.finished(job_id).status for job_id in short] == ["succeeded"] * 2
    crowd = [harness.submit(model="marathon", steps=1000, n=8) for _ in range(11)]
    harness.until(lambda: harness.rq_queue("marathon").count == 3, "the batch to be full")
    assert harness.finished(harness.submit(model="sprint", steps=5)).status == "succeeded"
    assert not any(harness.job(job_id).terminal for job_id in (*long, *crowd))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert {harness.job(job_id).status for job_id in (*long, *crowd)} == {"queued"}


def test_a_stopping_worker_finishes_the_short_job_and_requeues_the_long_one(harness: Harness) -> None:
    worker = harness.worker("both", seconds=0.02)
    long, short = harness.submit(model="both", steps=1000, n=4), harness.submit(model="both", steps=30)
    harness.until(lambda: harness.running(long) and harness.running(short), "both to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert (harness.job(short).status, harness.job(short).attempt) == ("succeeded", 1)
    assert harness.job(long).status == "queued"
    assert harness.rq_queue("both").get_job_ids() == [long]


def test_a_job_requeued_by_a_stopping_worker_is_finished_by_another(harness: Harness) -> None:
    """rq#2236, chatwoot#15886: SIGTERM; same id, same bytes."""
    asked: dict[str, Any] = {"steps": 1000, "sampler": "ddpm", "label": 2, "n": 2, "model": "long"}
    worker = harness.worker("long", seconds=0.05)
    job_id = harness.submit(**asked)
    harness.until(lambda: harness.running(job_id), "the job to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = harness.job(job_id)
    assert record.status == "queued"
    assert record.step > 0
    assert harness.rq_queue("long").get_job_ids() == [job_id]
    assert record.losses == 0
    assert all(report.models[0]["name"] != "long" for report in harness.store.workers.live())
    harness.worker("long")
    again = harness.submit(**asked)
    assert harness.sha256(job_id) == harness.sha256(again)
    assert harness.job(job_id).attempt == 2
    kinds = [kind for kind in events(harness, job_id) if kind not in ("progress", "image")]
    assert kinds == ["queued", "started", "queued", "started", "succeeded"]
    harness.until(lambda: harness.lines(job_id)[-1]["event"] == "job over", "the log's last line of it")
    lines = harness.lines(job_id)
    assert [line["event"] for line in lines] == ["job started", "job requeued", "job started", "job over"]
    assert [line.get("step") for line in lines] == [None, record.step, None, None]
    assert {line["request_id"] for line in lines} == {f"for {job_id}"}


def test_a_job_with_an_unusable_resume_point_starts_over_and_the_log_says_why(harness: Harness) -> None:
    job_id = harness.submit(model="restarted")
    harness.client.hset(keys.job(job_id), "numerics", "fake")
    harness.client.set(keys.resume(job_id), b"no resume point")
    harness.worker("restarted")
    assert harness.finished(job_id).status == "succeeded"
    (line,) = [line for line in harness.lines(job_id) if line["event"] == "resume point unusable"]
    assert line["request_id"] == f"for {job_id}"
    assert line["reason"]


def test_a_stopping_worker_finishes_jobs_that_are_nearly_done(harness: Harness) -> None:
    worker = harness.worker("short", seconds=0.01)
    job_id = harness.submit(model="short", steps=40)
    harness.until(lambda: harness.running(job_id) or harness.job(job_id).terminal, "the job to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = harness.job(job_id)
    assert (record.status, record.attempt) == ("succeeded", 1)


def test_a_job_delivered_to_its_own_worker_again_is_finished_once(harness: Harness) -> None:
    """A lease ran out while its worker was only slow, and the same worker takes the job once more."""
    worker = harness.worker("twice", seconds=0.02)
    job_id = harness.submit(model="twice", steps=40, n=8, sampler="ddpm", preview_every=1, preview="both")
    harness.until(lambda: harness.running(job_id), "the job to run")
    for _ in range(5):
        harness.rq_queue("twice").push_job_id(job_id)
        harness.client.publish("denoised:model:twice", job_id)
        harness.until(lambda: harness.rq_queue("twice").count == 0, "the worker to take it")
    record = harness.finished(job_id)
    assert record.status == "succeeded", record.error
    assert len(record.images) == 8
    assert [kind for kind in events(harness, job_id) if kind in TERMINAL] == ["succeeded"]
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_taken_over_from_a_slow_worker_survives_the_loss_of_the_next_one(harness: Harness) -> None:
    """One slot each: the second worker takes the job over, the first drops it, the second is killed."""
    for _ in range(2):
        harness.worker("passed-on", seconds=0.05, lease=2, max_batch=1)
    job_id = harness.submit(model="passed-on", steps=60)
    harness.until(lambda: harness.running(job_id), "the job to run")
    harness.until(
        lambda: sum(r.models[0]["name"] == "passed-on" for r in harness.store.workers.live()) == 2, "both workers"
    )
    harness.rq_queue("passed-on").push_job_id(job_id)
    harness.client.publish("denoised:model:passed-on", job_id)
    harness.until(lambda: harness.job(job_id).attempt >= 2 and harness.running(job_id), "the second to take it")
    *_, started = (event for event in harness.store.events.read(job_id) if event["type"] == "started")
    pid = int(harness.client.hget(f"rq:worker:{started['worker']}", "pid") or 0)
    assert pid in {hand.pid for hand in harness.workers}
    harness.until(
        lambda: all(r.trajectories == 0 for r in harness.store.workers.live() if r.name != started["worker"]), "room"
    )
    os.kill(pid, signal.SIGKILL)
    assert harness.finished(job_id).status == "succeeded"
    assert harness.job(job_id).attempt >= 3
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")


def test_a_quarantined_job_runs_alone_and_the_others_come_back_unharmed(harness: Harness) -> None:
    """It has lost two workers; if it kills the third one, too, it harms no other job."""
    worker = harness.worker("quarantine", seconds=0.02)
    others = [harness.submit(model="quarantine", steps=150, sampler="ddpm", seed=seed, label=1) for seed in range(3)]
    harness.until(lambda: all(harness.running(job_id) for job_id in others), "the others to run")
    worker.signal(signal.SIGSTOP)
    suspect = harness.submit(model="quarantine", steps=120, sampler="ddpm", label=1)
    harness.client.hset(f"denoised:job:{suspect}", "losses", 2)
    worker.signal(signal.SIGCONT)
    harness.until(lambda: harness.running(suspect), "its first step")
    statuses, waiting = [harness.job(job_id).status for job_id in others], harness.rq_queue("quarantine").get_job_ids()
    if harness.job(suspect).losses:  # no turn of it was saved yet
        assert (statuses, waiting) == (["queued"] * 3, others)
    assert [harness.finished(job_id).status for job_id in (suspect, *others)] == ["succeeded"] * 4
    assert [(harness.job(job_id).attempt, harness.job(job_id).losses) for job_id in others] == [(2, 0)] * 3
    (quarantined,) = [line for line in harness.lines(suspect) if line["event"] == "job quarantined"]
    assert quarantined["request_id"] == f"for {suspect}"
    assert harness.job(suspect).losses == 0, "it made progress, which ended the quarantine"
    starts = [event for job_id in others for event in harness.events(job_id) if event["type"] == "started"]
    assert len(starts) == 6
    again = [harness.submit(model="quarantine", steps=150, sampler="ddpm", seed=seed, label=1) for seed in range(3)]
    assert [harness.sha256(job_id) for job_id in others] == [harness.sha256(job_id) for job_id in again]


def forgotten(harness: Harness, job_id: str) -> bool:
    """Whether RQ knows nothing of a job any more, but for what a last heartbeat leaves to expire."""
    return all(harness.client.ttl(key) != -1 for key in harness.client.scan_iter(f"rq:*{job_id}*"))


def test_a_second_worker_with_other_weights_refuses_to_start(harness: Harness) -> None:
    """Equal requests would give two pictures; a worker with the same weights is welcome."""
    first = harness.worker("named", digest="a", lease=2.0)
    harness.until(lambda: harness.client.zcard(keys.claims("named")), "the first worker's claim")
    second = harness.worker("named", digest="bbbb", lease=2.0)
    assert second.wait() == 1
    assert "ModelConflict: named is served by worker-" in harness.log()
    assert "with other files (digest a; here bbbb): rename this folder, or stop the other worker first" in harness.log()
    third = harness.worker("named", digest="a", lease=2.0)
    harness.until(lambda: harness.client.zcard(keys.claims("named")) == 2, "the third worker's claim")
    expected = harness.sha256(harness.submit(model="named", seed=1))
    assert all(harness.sha256(harness.submit(model="named", seed=1)) == expected for _ in range(8))
    for worker in (first, third):
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert not harness.client.exists(keys.claims("named")), "a worker that leaves gives up its claim"


def test_a_job_begins_anew_when_the_weights_changed(harness: Harness) -> None:
    """AUTOMATIC1111/stable-diffusion-webui#4448: no picture of two models, and none under the wrong numerics. The new
    worker waits for the lease of the one that was killed."""
    old = harness.worker("replaced", digest="a", seconds=0.05, lease=1.0, max_batch=1)
    whole = harness.submit(model="replaced", steps=40, n=2)
    job_id = harness.submit(model="replaced", steps=40, n=2)
    before = harness.sha256(whole)
    harness.until(lambda: harness.job(job_id).images, "the first of two pictures")
    old.kill()
    new = harness.worker("replaced", digest="bbbb", lease=1.0)
    after = harness.sha256(job_id)
    assert after == harness.sha256(harness.submit(model="replaced", steps=40, n=2))
    assert not set(after) & set(before)
    record = harness.job(job_id)
    assert (record.numerics, record.attempt) == ("fake/model-bbbb/format-2", 2)
    new.signal(signal.SIGTERM)
    assert new.wait() == 0


def test_a_worker_whose_name_was_taken_while_it_stood_still_leaves(harness: Harness) -> None:
    worker = harness.worker("taken", digest="a", lease=1.0)
    harness.until(lambda: harness.client.zcard(keys.claims("taken")), "the worker's claim")
    worker.signal(signal.SIGSTOP)
    try:
        harness.until(lambda: not harness.client.exists(keys.claims("taken")), "the end of its claim")
        assert harness.store.claims.claim("another", {"taken": "bbbb"}, ttl=60) is None
    finally:
        worker.signal(signal.SIGCONT)
    assert worker.wait() == 1
    assert "taken is served by another with other files (digest bbbb; here a)" in harness.log()
