"""The previous release next to this one: what it has left in Redis is continued here, and it can read what we write.

`tests/data/wire_format_1.json` was recorded from the previous release: all keys of a job that its worker has given back
in the middle, with a resume point, the picture's digests, a worker's report, and what its readers require.
"""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from safetensors.torch import load

from denoised.jobs.format import FORMAT
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import WorkerReport
from tests.faults.test_worker_killed import check_events
from tests.harness import Harness

RECORDED = Path(__file__).parents[2] / "data" / "wire_format_1.json"
# JSON types by what the previous release's dataclasses say of a field.
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None), "list": list, "dict": dict}


@cache
def recorded() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(RECORDED.read_text())
    return found


def raw(text: str) -> bytes:
    return base64.b64decode(text)


def raw_fields(fields: Mapping[str, str]) -> dict[Any, Any]:
    return {raw(name): raw(value) for name, value in fields.items()}


def restore(client: redis.Redis) -> str:
    """Write all recorded keys; the id of the job."""
    for key, (kind, value) in recorded()["keys"].items():
        if kind == "string":
            client.set(key, raw(value))
        elif kind == "hash":
            client.hset(key, mapping=raw_fields(value))
        elif kind == "list":
            client.rpush(key, *map(raw, value))
        elif kind == "set":
            client.sadd(key, *map(raw, value))
        elif kind == "zset":
            client.zadd(key, {raw(member): score for member, score in value})
        else:
            for entry, fields in value:
                client.xadd(key, raw_fields(fields), id=entry)
    return str(recorded()["job"])


def fits(value: object, described: str) -> bool:
    """Whether the previous release's reader takes a JSON value for a field of a type."""
    named = described.replace("<class '", "").replace("'>", "")
    if named.startswith("typing.Literal") or "Mapping" in named or "Sequence" in named or "Any" in named:
        return True
    kinds = [part.partition("[")[0].strip() for part in named.split("|")]
    if any(kind not in TYPES for kind in kinds):
        return True  # a dataclass of its own; it is compared by its own fields
    allowed = [TYPES[kind] for kind in kinds]
    return any(isinstance(value, kind) for kind in allowed) and (bool in allowed or not isinstance(value, bool))


def unreadable(value: Mapping[str, Any], reader: str) -> list[str]:
    """The fields for which a reader of the previous release refuses an object."""
    fields = recorded()["readers"][reader]
    missing = [name for name, field in fields.items() if field["required"] and name not in value]
    known = {name: fields[name]["type"] for name in value if name in fields}
    return [*missing, *(name for name, described in known.items() if not fits(value[name], described))]


@pytest.fixture
def harness(valkey_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path)
    yield harness
    harness.close()


def test_a_job_of_the_previous_release_is_continued_with_the_same_bytes(harness: Harness) -> None:
    """From its queue, its record, its events and its resume point; its picture's bytes do not change either."""
    job_id = restore(harness.client)
    before = harness.job(job_id)
    assert (before.status, before.attempt, before.step > 20) == ("queued", 1, True)
    assert harness.events(job_id), "a front end of this release reads its events"
    assert [job.id for job in harness.store.listing.page("", 10)] == [job_id]
    worker = harness.worker("fake")
    assert harness.sha256(job_id) == recorded()["sha256"]
    assert len(worker.evaluations()) < 20, "it continued from the resume point"
    assert harness.job(job_id).attempt == 2
    check_events(harness.events(job_id))


def test_the_previous_release_reads_what_this_one_writes(harness: Harness) -> None:
    """A job that a worker of this release gives back: record, events, resume point, report."""
    worker = harness.worker("fake", seconds=0.25)
    job_id = harness.submit(steps=40, sampler="ddpm", seed=5, n=2, label=1, preview_every=20)
    harness.until(lambda: harness.job(job_id).step >= 1, "a step")
    reports = [json.loads(report.to_json()) for report in harness.store.workers.live()]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    written: Any = harness.client.hgetall(keys.job(job_id))
    old = raw_fields(recorded()["keys"][keys.job(recorded()["job"])][1])
    assert old.keys() - written.keys() == set(), "fields that the previous release stores and reads"
    for name in (b"attempt", b"losses", b"max_attempts", b"saved_step", b"saved_evaluations", b"writes", b"created_at"):
        float(written[name])
    assert unreadable(json.loads(written[b"request"]), "SamplingRequest") == []
    assert set(json.loads(written[b"requires"])) <= set(recorded()["readers"]["SamplingRequest"])
    assert [unreadable(report, "WorkerReport") for report in reports] == [[]]
    self_made = _members(harness.client, job_id)
    theirs = {kind: members for kind, members in _recorded_members().items() if kind in self_made}
    assert {kind: theirs[kind] - self_made[kind] for kind in theirs} == {kind: set() for kind in theirs}
    _, point = recorded()["keys"][keys.resume(recorded()["job"])]
    _check_same_layout(harness.client.get(keys.resume(job_id)), raw(point))


def test_an_image_and_its_report_have_the_fields_that_the_previous_release_requires(harness: Harness) -> None:
    harness.worker("fake")
    job_id = harness.submit()
    harness.sha256(job_id)
    images = json.loads(harness.client.hget(keys.job(job_id), "images") or "[]")  # type: ignore[arg-type]
    assert [unreadable(image, "Image") for image in images] == [[]]


def test_a_report_of_the_previous_release_is_read() -> None:
    report = WorkerReport.from_json(json.dumps(recorded()["report"]))
    assert [card["name"] for card in report.models] == ["fake"]


def test_a_resume_point_of_a_newer_format_costs_itself_alone(harness: Harness) -> None:
    """The job starts again, which its log says in one line, and ends with the same bytes."""
    job_id = restore(harness.client)
    key = keys.resume(job_id)
    point: Any = harness.client.get(key)
    newer = point.replace(f'"format":"{FORMAT}"'.encode(), f'"format":"{FORMAT + 1}"'.encode())
    assert newer != point
    harness.client.set(key, newer)
    other = harness.submit()
    worker = harness.worker("fake")
    assert harness.sha256(job_id) == recorded()["sha256"]
    assert harness.sha256(other)
    assert len(worker.evaluations()) >= 40
    said = [line for line in harness.lines(job_id) if line["event"] == "resume point unusable"]
    assert [line["reason"] for line in said] == [f"the resume point has format {FORMAT + 1} (allowed: up to {FORMAT})"]


def test_a_record_of_a_newer_format_hides_no_other(store: Store) -> None:
    job_id = restore(store.client)
    store.client.hset(keys.job(job_id), mapping={"format": FORMAT + 1, "status": "paused"})
    store.client.zadd(keys.jobs(""), {"another": 1.0})
    second = raw_fields(recorded()["keys"][keys.job(job_id)][1])
    store.client.hset(keys.job("another"), mapping={**second, b"id": b"another"})
    assert [job.id for job in store.listing.page("", 10)] == ["another"]


def _members(client: redis.Redis, job_id: str) -> dict[str, set[str]]:
    entries: Any = client.xrange(keys.events(job_id))
    events = [json.loads(fields[b"e"]) for _, fields in entries]
    return {event["type"]: set(event) for event in events}


def _recorded_members() -> dict[str, set[str]]:
    """The members of the previous release's events by type."""
    entries = recorded()["keys"][keys.events(recorded()["job"])][1]
    events = [json.loads(raw_fields(fields)[b"e"]) for _, fields in entries]
    return {event["type"]: set(event) for event in events}


def _check_same_layout(ours: Any, theirs: bytes) -> None:
    """Two resume points have the same tensors, of the same types; only rows and numbers differ."""
    layouts = [{name: (tensor.dtype, tensor.shape) for name, tensor in load(data).items()} for data in (ours, theirs)]
    assert layouts[0] == layouts[1]
