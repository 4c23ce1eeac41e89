"""Records of other versions and damaged ones: ignored, refused or skipped, each alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT, UnreadableLog, parse_json, read_dataclass
from denoised.jobs.record import Image, JobRecord, required_fields
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate
from denoised.jobs.worker_report import WorkerReport
from tests.harness import request, start

Create = Callable[..., JobRecord]
IMAGE = {"index": 0, "seed": 7, "width": 4, "height": 4, "format": "png", "sha256": "0" * 64}
DAMAGES: list[tuple[str, bytes | None]] = [
    ("request", b"no JSON"),
    ("request", b"[]"),
    ("request", b'{"model": "fake"}'),
    ("request", None),
    ("status", b"unheard-of"),
    ("created_at", b"yesterday"),
    ("attempt", b"\xff\xfe"),
    ("images", b'[{"index": "0"}]'),
    ("owner", None),
]


def damage(client: redis.Redis, job_id: str, name: str, value: bytes | None) -> None:
    """Overwrite or remove a field of a job's record."""
    if value is None:
        client.hdel(keys.job(job_id), name)
    else:
        client.hset(keys.job(job_id), name, value)


def skipped(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.getMessage() == "record skipped"]


def test_every_record_carries_its_format(store: Store, client: redis.Redis, create: Create) -> None:
    record = create()
    start(store, record.id)
    store.write(JobUpdate(record.id, 1, 1, events=[{"type": "progress"}]))
    version = str(FORMAT).encode()
    assert client.hget(keys.job(record.id), "format") == version
    entries: list[Any] = client.xrange(keys.events(record.id))  # type: ignore[assignment]
    assert [fields[b"f"] for _, fields in entries] == [version] * 3
    report = WorkerReport("w", [{"name": "fake"}], 16, 0, 0, None)
    assert json.loads(report.to_json())["format"] == FORMAT


def test_fields_of_a_newer_version_are_ignored(store: Store, client: redis.Redis, create: Create) -> None:
    record = create()
    fields: Any = client.hgetall(keys.job(record.id))
    newer = json.dumps({**json.loads(fields[b"request"]), "unheard_of": 1})
    client.hset(keys.job(record.id), mapping={"request": newer, "unheard_of": "1", "format": str(FORMAT + 1)})
    assert store.job(record.id) == record
    started = store.attempts.start(record.id, "worker", "fake")
    assert started is not None
    assert started.record.request == record.request


def test_a_job_that_requires_a_field_of_a_newer_version_can_be_shown_but_not_run(
    store: Store, client: redis.Redis, create: Create
) -> None:
    record = create()
    client.hset(keys.job(record.id), "requires", '["eta", "unheard_of"]')
    assert store.job(record.id) == record
    with pytest.raises(RecordError, match=r"the job requires unheard_of, unknown to this version \(format 1\)"):
        store.attempts.start(record.id, "worker", "fake")


def test_a_job_requires_the_request_fields_that_are_not_at_their_defaults(client: redis.Redis, create: Create) -> None:
    plain = request()
    assert "eta" not in required_fields(plain)
    assert {"eta", "preview_every"} <= set(required_fields(replace(plain, eta=0.5, preview_every=2)))
    record = create(preview_every=3)
    stored = client.hget(keys.job(record.id), "requires")
    assert "preview_every" in json.loads(stored)  # type: ignore[arg-type]


def test_a_record_of_a_version_without_formats_is_read(store: Store, client: redis.Redis, create: Create) -> None:
    record = create()
    client.hdel(keys.job(record.id), "format", "requires")
    assert store.job(record.id) == record
    assert start(store, record.id) == 1


@pytest.mark.parametrize(("name", "value"), DAMAGES)
def test_a_damaged_record_is_skipped_in_lists_and_logged_once(
    name: str,
    value: bytes | None,
    store: Store,
    client: redis.Redis,
    create: Create,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound, bad = create("sound", owner="me"), create("bad", owner="me")
    damage(client, bad.id, name, value)
    with caplog.at_level(logging.WARNING, "denoised"):
        for _ in range(3):
            assert [record.id for record in store.listing.page("me", 10)] == ["sound"]
            assert store.listing.records([sound.id, bad.id, "nobody"]) == {sound.id: sound}
            assert store.listing.active_evaluations([sound.id])[sound.id] == 0
            store.listing.active_evaluations([bad.id])
    (line,) = skipped(caplog)
    assert vars(line)["job"] == "bad"
    assert vars(line)["reason"]
    assert client.zcard("denoised:jobs:me") == 2, "it is not taken for an expired one"
    with pytest.raises(RecordError):
        store.job(bad.id)


@pytest.mark.parametrize(("name", "value"), DAMAGES)
def test_a_damaged_job_loses_its_workers_fails_and_is_counted(
    name: str, value: bytes | None, store: Store, client: redis.Redis, create: Create
) -> None:
    """None of the scripts fails on it, or no worker could take another job."""
    record = create("bad")
    started = 0
    for attempt in range(1, 6):
        damage(client, record.id, name, value)
        try:
            started += start(store, record.id) > 0
        except RecordError:
            started += 1
        store.attempts.start_alone(record.id, attempt, "worker")
    assert started <= 5
    end = JobUpdate(record.id)
    end.end("failed", {"code": "unservable", "message": "no"})
    store.write(end)
    keys_of_queue = QueueKeys("fake", "q:fake", "q:fake:intermediate", "q:fake:started", "q:job:")
    client.hset("q:job:bad", "status", "started")
    client.zadd("q:fake:started", {"bad:e": 1.0})
    assert store.attempts.requeue_lost(keys_of_queue, grace=10) == 1


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"name": "bad"}',
        '{"max_batch": "16"}',
        '{"models": [{}]}',
        '{"counters": {"turns": "many"}}',
        '{"requires": ["unheard_of"]}',
        '{"paces": 3}',
        r'{"other": {"text": "\ud800"}}',
    ],
)
def test_a_worker_report_that_cannot_be_read_is_skipped_and_logged_once(
    text: str, store: Store, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    sound = WorkerReport("sound", [{"name": "shoes"}], 16, 0, 0, None)
    for report in (sound, replace(sound, name="bad")):
        store.workers.report(report, ttl=60)
    if text.startswith("{") and "name" not in text:
        text = json.dumps({**json.loads(replace(sound, name="bad").to_json()), **json.loads(text)})
    client.set(keys.worker("bad"), text)
    with caplog.at_level(logging.WARNING, "denoised"):
        for _ in range(3):
            assert store.workers.live() == [sound]
    (line,) = skipped(caplog)
    assert vars(line)["worker"] == "bad"
    store.workers.remove("bad")
    assert store.workers.live() == [sound]


@pytest.mark.parametrize(
    "entry",
    [
        {"a": "1", "e": "no JSON"},
        {"a": "1", "e": "[]"},
        {"a": "1", "e": "{}"},
        {"a": "one", "e": '{"type": "progress"}'},
        {"x": "1"},
    ],
)
def test_an_event_that_cannot_be_read_is_skipped_and_logged_once(
    entry: dict[Any, Any], store: Store, client: redis.Redis, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    record = create()
    client.xadd(keys.events(record.id), entry, id="2-0")
    client.hset(keys.job(record.id), "seq", 2)
    start(store, record.id)
    with caplog.at_level(logging.WARNING, "denoised"):
        for _ in range(3):
            assert [event["seq"] for event in store.events.read(record.id)] == [1, 3]
    (line,) = skipped(caplog)
    assert vars(line)["event"] == f"{record.id}/2-0"


def test_a_total_that_is_no_number_is_left_out(store: Store, client: redis.Redis, create: Create) -> None:
    create()
    store.workers.add_counters("w", {"turns": 3})
    client.hset(keys.ENGINE_TOTALS, "jobs", "many")
    client.hset(keys.JOB_TOTALS, "failed:fake", "nan")
    assert store.workers.totals() == ({"turns": 3.0}, {("accepted", "fake"): 1})


def test_values_of_the_wrong_type_are_refused_by_name() -> None:
    assert read_dataclass(Image, {**IMAGE, "unheard_of": 1}) == Image(**IMAGE)  # type: ignore[arg-type]
    for name, value in (("index", "0"), ("sha256", None), ("width", 1.5)):
        with pytest.raises(RecordError, match=rf"Image\.{name} is "):
            read_dataclass(Image, {**IMAGE, name: value})


def test_the_log_of_unreadable_records_forgets_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    unreadable = UnreadableLog()
    with caplog.at_level(logging.WARNING, "denoised"):
        for _ in range(2):
            for k in range(UnreadableLog.REMEMBERED + 1):
                unreadable.skip("job", str(k), RecordError("bad"))
    assert len(skipped(caplog)) == 2 * (UnreadableLog.REMEMBERED + 1)


@pytest.mark.parametrize("text", [r'"\ud83d"', r'{"\uDE00": 1}', r'["\ude00\ud83d"]', r'"a \uD83D b"'])
def test_text_with_half_a_character_is_refused_because_no_response_could_contain_it(text: str) -> None:
    for each in (text, text.encode()):
        with pytest.raises(RecordError, match="surrogates not allowed"):
            parse_json(each, 100)


def test_whole_characters_are_read_however_they_are_written() -> None:
    assert parse_json(r'"\ud83d\uDE00"', 100) == parse_json('"😀"'.encode(), 100) == "😀"
    assert parse_json(r'"a \\ud800 b"', 100) == r"a \ud800 b", "an escaped backslash"
