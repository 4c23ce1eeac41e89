"""What somebody else has written to Redis, or a Redis without memory, costs one job at most, and no worker."""

from __future__ import annotations

import json
import resource
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from denoised.jobs.store import redis_keys as keys
from tests.harness import Harness, request

MIB = 1 << 20


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    """One fast worker serves `fake`."""
    harness = Harness(valkey_url, tmp_path_factory.mktemp("hostile"))
    harness.client.flushall()
    harness.worker("fake", max_batch=4)
    harness.finished(harness.submit())
    yield harness
    harness.client.config_set("maxmemory", "0")
    harness.close()


def spoil(harness: Harness, **values: bytes | str) -> str:
    """A queued job with some fields of its record overwritten before a worker sees it."""
    job_id = hold_back(harness)
    harness.client.hset(keys.job(job_id), mapping=values)
    release(harness)
    return job_id


def hold_back(harness: Harness) -> str:
    """A job for `fake` that no worker sees before `release`."""
    job_id = harness.submit(model="nobody")
    harness.client.hset(keys.job(job_id), "request", stored())
    return job_id


def release(harness: Harness) -> None:
    harness.client.rename("rq:queue:nobody", "rq:queue:fake")


def stored(**fields: Any) -> str:
    """The JSON of a request that no front end has checked."""
    return json.dumps({**asdict(request(model="fake")), **fields})


SPOILED: dict[str, dict[str, bytes | str]] = {
    "a million images": {"request": stored(n=10**6)},
    "more images than the card allows": {"request": stored(n=1000)},
    "a million steps": {"request": stored(steps=10**6)},
    "no steps": {"request": stored(steps=0)},
    "a negative number of images": {"request": stored(n=-1)},
    "a label beyond the card": {"request": stored(label=10**6)},
    "a million stages": {"request": stored(stages=10**6)},
    "NaN": {"request": stored(guidance_scale=float("nan"))},
    "an infinity": {"request": stored(eta=1.0).replace('"eta": 1.0', '"eta": 1e999')},
    "a huge seed": {"request": stored(seed=10**30)},
    "a boolean": {"request": stored(n=True)},
    "an unknown format": {"request": stored(format="tiff")},
    "deep JSON": {"request": "[" * 100_000},
    "a request of 50 MiB": {"request": stored(label_name="x" * (50 * MIB))},
    "an unknown field of 50 MiB": {"unheard_of": "x" * (50 * MIB)},
    "a thousand unknown fields": {f"field{k}": "x" for k in range(1000)},
    "bytes": {"request": b"\xff\xfe\x00"},
}


@pytest.mark.parametrize("fields", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_record_fails_its_job_alone_and_takes_no_memory(
    fields: dict[str, bytes | str], harness: Harness
) -> None:
    worker = harness.workers[0]
    before = worker.resident()
    job_id = spoil(harness, **fields)
    assert harness.finished(harness.submit()).status == "succeeded"
    harness.until(lambda: harness.client.hget(keys.job(job_id), "status") == b"failed", "the job to fail")
    error = json.loads(harness.client.hget(keys.job(job_id), "error") or b"{}")  # type: ignore[arg-type]
    assert error["code"] == "unservable"
    assert worker.resident() < before + 40
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")
    assert worker.exit_code() is None
    harness.client.delete(keys.job(job_id))


@pytest.mark.parametrize("key", ["job", "events", "resume", "rq"])
def test_a_key_of_another_type_costs_its_own_job_at_most(key: str, harness: Harness) -> None:
    job_id = hold_back(harness)
    name = {
        "job": keys.job(job_id),
        "events": keys.events(job_id),
        "resume": keys.resume(job_id),
        "rq": f"rq:job:{job_id}",
    }[key]
    harness.client.delete(name)
    harness.client.sadd(name, "not what it should be")
    release(harness)
    assert harness.finished(harness.submit()).status == "succeeded"
    if key in ("events", "resume"):
        assert harness.finished(job_id).status == "succeeded"
    assert harness.workers[0].exit_code() is None
    harness.client.delete(keys.job(job_id))


@pytest.mark.parametrize("seq", ["many", "-5", "1e300", "nan", "0", "99999999999999999999"])
def test_a_damaged_seq_ends_no_worker_and_keeps_the_order_of_events(seq: str, harness: Harness) -> None:
    job_id = spoil(harness, seq=seq)
    assert harness.finished(job_id).status == "succeeded"
    events = harness.events(job_id)
    assert [event["type"] for event in events][-1] == "succeeded"
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})


def test_compressed_data_in_rq_is_never_unpacked(harness: Harness) -> None:
    """RQ decompresses a job's data when it fetches it; we read nothing but the id."""
    worker = harness.workers[0]
    before = worker.resident()
    bomb = zlib.compress(b"\0" * (256 * MIB), 9)
    job_id = hold_back(harness)
    harness.client.hset(f"rq:job:{job_id}", mapping={"data": bomb, "created_at": "not a date", "meta": bomb})
    release(harness)
    harness.client.rpush("rq:queue:fake", "", "\n", "x" * MIB, b"\xff\xfe", "no-such-job")
    assert harness.finished(job_id).status == "succeeded"
    harness.until(lambda: harness.rq_queue("fake").count == 0, "the queue to be empty")
    assert worker.resident() < before + 40
    assert worker.exit_code() is None


@pytest.mark.parametrize("name", ["rq:queue:fake", "rq:wip:fake", keys.WORKERS, keys.MODELS, keys.ENGINE_TOTALS])
def test_a_shared_key_of_another_type_ends_no_worker(name: str, harness: Harness) -> None:
    before = harness.client.dump(name)
    harness.client.delete(name)
    harness.client.set(name, "not what it should be")
    harness.until(lambda: len(harness.log()) > 0, "a moment")
    harness.client.delete(name)
    if before is not None:
        harness.client.restore(name, 0, before, replace=True)
    assert harness.finished(harness.submit()).status == "succeeded"
    assert harness.workers[0].exit_code() is None


SHARED = [
    "rq:queue:fake",
    "rq:queue:fake:intermediate",
    "rq:wip:fake",
    "rq:workers",
    "rq:workers:fake",
    keys.claims("fake"),
    keys.intermediate("fake"),
    keys.WORKERS,
    keys.MODELS,
    keys.ENGINE_TOTALS,
    keys.JOB_TOTALS,
    keys.ENDS,
]


@pytest.mark.parametrize("kind", ["string", "stream"])
def test_shared_keys_of_another_type_delay_jobs_but_stop_none(kind: str, harness: Harness) -> None:
    """All at once, and nobody repairs them. The lease of a running job is in the registry again at its next renewal."""
    harness.worker("leased", seconds=0.02, lease=2.0)
    running = harness.submit(model="leased", steps=200)
    harness.until(lambda: harness.running(running), "the job to run")
    for name in [*SHARED, "rq:wip:leased"]:
        with harness.client.pipeline() as pipeline:
            pipeline.delete(name)
            _ = pipeline.set(name, b"\xff") if kind == "string" else pipeline.xadd(name, {"x": "y"})
            pipeline.execute()
    harness.until(lambda: harness.client.type("rq:wip:leased") == b"zset", "the lease to be renewed")
    assert [entry.startswith(running.encode()) for entry in harness.client.zrange("rq:wip:leased", 0, -1)] == [True]
    harness.until(lambda: harness.client.type("rq:queue:fake") == b"none", "the queue to be repaired")
    assert harness.finished(harness.submit()).status == "succeeded"
    assert harness.worker("fake", max_batch=4).exit_code() is None
    assert harness.finished(harness.submit()).status == "succeeded"
    record = harness.finished(running)
    assert (record.status, record.attempt) == ("succeeded", 1)
    assert [worker.exit_code() for worker in harness.workers if worker.exit_code()] == []
    harness.until(lambda: len(harness.store.workers.live()) >= 2, "the workers to report")


def test_a_claim_on_a_model_that_nobody_can_have_made_stops_no_worker(harness: Harness) -> None:
    far = {"another-digest worker-x": float("inf"), "another-digest worker-y": time.time() + 10**7, b"\xff": 1e300}
    harness.client.zadd(keys.claims("claimed"), far)
    worker = harness.worker("claimed", lease=1.0)
    assert harness.finished(harness.submit(model="claimed")).status == "succeeded"
    harness.client.zadd(keys.claims("claimed"), far)
    harness.until(lambda: harness.client.zcard(keys.claims("claimed")) == 1, "the next renewal")
    assert harness.finished(harness.submit(model="claimed")).status == "succeeded"
    assert worker.exit_code() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits a process by what /proc says (Linux)")
def test_a_worker_under_a_memory_limit_goes_on_when_a_reply_does_not_fit(harness: Harness) -> None:
    worker = harness.worker("capped", more_mib=300)
    assert harness.finished(harness.submit(model="capped")).status == "succeeded"
    worker.signal(signal.SIGSTOP)
    big, small = harness.submit(model="capped"), harness.submit(model="capped")
    harness.client.hset(keys.job(big), "numerics", "fake")
    harness.client.set(keys.resume(big), b"\0" * (400 * MIB))
    worker.signal(signal.SIGCONT)
    assert harness.finished(small).status == "succeeded"
    assert harness.finished(big).status == "succeeded", "it starts over"
    assert worker.exit_code() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits a process by what /proc says (Linux)")
def test_a_worker_without_memory_for_more_answers_and_goes_on(harness: Harness) -> None:
    """A cap that leaves room for Python's own objects: no library can be loaded. Pillow then lost WebP for good.

    With no room at all, any line may fail, the handling of the failure too: such a worker exits, and its jobs go back.
    """
    worker = harness.worker("tight")
    assert harness.finished(harness.submit(model="tight")).status == "succeeded"
    (line,) = [
        line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if line.startswith("VmSize")
    ]
    limit = int(line.split()[1]) * 1024 + 2 * MIB
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    formats = ("webp", "jpeg", "png")
    jobs = [harness.submit(model="tight", format=format, n=n, preview_every=1) for format in formats for n in (1, 16)]
    for record in map(harness.finished, jobs):
        assert record.status == "succeeded" or (record.error or {}).get("code") == "out_of_memory", record.error
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for format in formats:
        assert harness.finished(harness.submit(model="tight", format=format)).status == "succeeded"
    assert worker.exit_code() is None


def test_at_maxmemory_accepted_jobs_end_without_frames_and_can_be_canceled(harness: Harness) -> None:
    """Nothing waits for an operator: frames are dropped, pictures and ends are written, a cancel frees memory."""
    worker = harness.worker("full", seconds=0.02)
    running = harness.submit(model="full", steps=200, preview_every=1, preview="both")
    canceled = harness.submit(model="full", steps=1000, preview_every=1)
    harness.until(lambda: harness.running(running) and harness.running(canceled), "both to run")
    worker.signal(signal.SIGSTOP)
    queued = harness.submit(model="full", steps=20, n=4, preview_every=1)
    late = harness.submit(model="nobody")
    harness.client.config_set("maxmemory", "1")
    worker.signal(signal.SIGCONT)
    record = harness.store.cancel(canceled)
    assert record is not None
    assert record.status == "canceled"
    canceled_late = harness.store.cancel(late)
    assert canceled_late is not None
    assert canceled_late.status == "canceled"
    assert harness.finished(running).status == "succeeded"
    done = harness.finished(queued)
    assert (done.status, len(done.images)) == ("succeeded", 4)
    assert not [event for event in harness.events(queued) if event["type"] == "frame"]
    assert len([event for event in harness.events(running) if event["type"] == "progress"]) == 200
    assert [worker.name for worker in harness.store.workers.live()], "they still report"
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    harness.client.config_set("maxmemory", "0")
