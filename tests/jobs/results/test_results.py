"""Large values outside Redis: what Redis refers to, budgets in bytes, what is deleted and when, damaged references."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from denoised.jobs.errors import RecordError, StoreFull, StoreUnavailable, StoreUnfit
from denoised.jobs.record import JobRecord
from denoised.jobs.results.reference import MAGIC, FramePlace, Reference
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate
from tests.harness import start

Create = Callable[..., JobRecord]
PICTURE, FRAME = b"picture" * 1000, b"frame" * 1000


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/results" if request.param == "file" else str(request.getfixturevalue("s3_url"))


@pytest.fixture
def open_store(client: redis.Redis, url: str) -> Callable[..., Store]:
    """`open_store(result_ttl=…, **budgets)`: a store of an empty Valkey, with a place for results."""

    def open_store(result_ttl: int = 3600, **budgets: int) -> Store:
        settings = ResultSettings(url, **budgets)
        return Store(client, result_ttl, settings, ResultStore(url, 5.0))

    return open_store


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


def frame(k: int, picture: bytes = FRAME) -> dict[str, Any]:
    return {"type": "frame", "image": k, "step": 1, "kind": "x0", "data": base64.b64encode(picture).decode()}


def files(store: Store, job: str) -> set[str]:
    """Those of a job in the place for results."""
    place = store.results.store
    assert place is not None
    folder = f"{place._root}/{store.results.ledger.folder()}/{job}"
    return {path.rpartition("/")[2] for path in place._fs.find(folder)}


def saved(job: JobRecord, number: int, resume: bytes = b"point") -> JobUpdate:
    update = JobUpdate(job.id, 1, number)
    update.save(resume, number, number)
    return update


def test_pictures_frames_arrays_and_resume_points_lie_outside_redis_and_read_the_same(
    store: Store, create: Create
) -> None:
    job = create(store=store, n=2)
    start(store, job.id)
    update = saved(job, 1, b"point" * 1000)
    update.events = [{"type": "progress", "step": 1}, frame(0), frame(1, b"another")]
    update.images, update.arrays = {0: PICTURE}, {(0, "x0"): b"array" * 1000}
    assert store.write(update)
    assert store.image(job.id, 0) == PICTURE
    assert store.arrays.read(job.id, 0, "x0") == b"array" * 1000
    outcome = store.outcome(job.id, 2)
    assert outcome is not None
    assert outcome.pictures == {0: PICTURE}
    assert store.attempts.resume_point(job.id) == b"point" * 1000
    events = store.events.read(job.id)
    complete = [store.results.with_frame(event) for event in events]
    shown = [base64.b64decode(event["data"]) for event in complete if event is not None and event["type"] == "frame"]
    assert shown == [FRAME, b"another"]
    assert complete[-1] == {"seq": 5, "job": job.id, "attempt": 1, **frame(1, b"another")}
    assert files(store, job.id) == {"image-0-1", "array-0-x0-1", "resume-1-1", "frames-1-1-0"}
    stored = sum(store.client.memory_usage(key) or 0 for key in store.client.scan_iter("denoised:job:*"))
    assert stored < 12_000, "of which the empty stream takes 4 KiB"


def test_an_update_that_is_written_again_is_not_stored_again(store: Store, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    update = saved(job, 1)
    (first,) = store.results.move_out([update])
    place = store.results.store
    assert place is not None
    place.delete([Reference.parse(first.resume or b"", job.id).name])  # type: ignore[union-attr]
    assert store.results.move_out([update]) == [first]
    assert files(store, job.id) == set()


def test_a_resume_point_replaces_earlier_ones_and_the_end_deletes_it(store: Store, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    for number in (1, 2, 3):
        assert store.write(saved(job, number))
    assert files(store, job.id) == {"resume-1-3"}
    end = JobUpdate(job.id, 1, 4, images={0: PICTURE}, image_count=1)
    end.end("succeeded")
    assert store.write(end)
    assert files(store, job.id) == {"image-0-1"}


def test_a_stale_attempt_deletes_nothing_of_the_current_one(store: Store, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    store.write(saved(job, 1))
    assert start(store, job.id, "another worker") == 2
    current = JobUpdate(job.id, 2, 1)
    current.save(b"current", 2, 2)
    assert store.write(current)
    assert not store.write(saved(job, 9, b"stale"))
    assert store.attempts.resume_point(job.id) == b"current"


def test_a_canceled_job_frees_its_resume_point_at_once(store: Store, create: Create) -> None:
    job = create(store=store)
    store.results.reserve(job.id, 1000)
    start(store, job.id)
    store.write(saved(job, 1))
    store.cancel(job.id)
    assert files(store, job.id) == set()
    assert sum(store.results.ledger.bytes_by_kind().values()) == 0


def test_everything_is_deleted_when_the_job_expires_also_what_a_dead_process_left(
    store: Store, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.jobs.results.ledger.LOOK_SECONDS", 0.0)
    job, other = create(store=store), create(store=store)
    for each in (job, other):
        start(store, each.id)
    store.write(JobUpdate(job.id, 1, 1, images={0: PICTURE}, events=[frame(0)]))
    store.results.move_out([JobUpdate(job.id, 1, 2, images={1: PICTURE})])  # its process dies before Redis knows
    store.write(JobUpdate(other.id, 1, 1, images={0: PICTURE}))
    store.client.delete(keys.job(job.id), keys.events(job.id))
    assert store.results.delete_due(10) == 2
    assert files(store, job.id) == set()
    assert files(store, other.id) == {"image-0-1"}
    assert dict(store.results.ledger.bytes_by_kind()) == {"image": len(PICTURE), "frames": 0}
    assert store.client.zrange(keys.RESULTS_DUE, 0, -1) == [other.id.encode()]
    assert store.client.zcard(keys.RESULT_FRAMES) == 0
    assert store.results.delete_due(10) == 0, "it belongs to the first process for a while"


def test_an_ended_job_is_looked_at_again_when_it_expires(
    open_store: Callable[..., Store], create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.jobs.results.ledger.LOOK_SECONDS", 0.0)
    store = open_store(result_ttl=500)
    job = create(store=store)
    start(store, job.id)
    end = JobUpdate(job.id, 1, 1, images={0: PICTURE}, image_count=1)
    end.end("succeeded")
    store.write(end)
    store.results.delete_due(10)
    ((_, due),) = store.client.zrange(keys.RESULTS_DUE, 0, -1, withscores=True)
    seconds, _ = store.client.time()
    assert 490 < due - seconds < 510


def test_the_oldest_frames_go_first_and_no_picture(open_store: Callable[..., Store], create: Create) -> None:
    store = open_store(max_frame_bytes=3 * len(FRAME))
    older, newer = create(store=store), create(store=store)
    for each in (older, newer):
        start(store, each.id)
    store.write(JobUpdate(older.id, 1, 1, images={0: PICTURE}, events=[frame(0)]))
    for number in (1, 2, 3):
        store.write(JobUpdate(newer.id, 1, number, events=[frame(number)]))
    assert files(store, older.id) == {"image-0-1"}
    assert len(files(store, newer.id)) == 3
    assert [store.results.with_frame(event) for event in store.events.read(older.id)][-1] is None
    end = JobUpdate(older.id, 1, 2)
    end.end("succeeded")
    store.write(end)
    assert store.events.read(older.id)[-1]["type"] == "succeeded"
    assert store.results.ledger.bytes_by_kind()["frames"] == 3 * len(FRAME)


def test_resume_points_beyond_their_budget_are_left_out_and_the_job_goes_on(
    open_store: Callable[..., Store], create: Create
) -> None:
    store = open_store(max_resume_bytes=150)
    first, second = create(store=store), create(store=store)
    for each in (first, second):
        start(store, each.id)
    store.write(saved(first, 1, b"p" * 100))
    update = saved(second, 1, b"p" * 100)
    update.fields["step"] = 1
    assert store.write(update)
    assert store.attempts.resume_point(second.id) is None
    assert store.client.hmget(keys.job(second.id), "step", "saved_step") == [b"1", b"0"]
    store.cancel(first.id)
    assert store.write(saved(second, 2, b"p" * 100))
    assert store.attempts.resume_point(second.id) == b"p" * 100


def test_no_job_is_accepted_whose_pictures_have_no_room(open_store: Callable[..., Store], create: Create) -> None:
    store = open_store(max_picture_bytes=1000)
    job = create(store=store)
    store.results.reserve(job.id, 900)
    with pytest.raises(StoreFull, match="has 900 bytes of pictures, and this job may write 200 more"):
        store.results.reserve("another", 200)
    store.cancel(job.id)
    store.results.reserve("another", 200)


def test_a_value_from_before_a_place_was_set_is_still_read(store: Store, client: redis.Redis, create: Create) -> None:
    job = create()
    before = Store(client)
    start(before, job.id)
    before.write(JobUpdate(job.id, 1, 1, images={0: PICTURE}, events=[frame(0)]))
    assert store.image(job.id, 0) == PICTURE
    event = store.events.read(job.id)[-1]
    assert store.results.with_frame(event) == event


def test_a_process_without_the_place_says_so(store: Store, client: redis.Redis, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    store.write(JobUpdate(job.id, 1, 1, images={0: PICTURE}))
    with pytest.raises(StoreUnavailable, match="set DENOISED_RESULTS_URL as elsewhere"):
        Store(client).image(job.id, 0)


HEX = "0" * 32


@pytest.mark.parametrize(
    "name",
    [f"{HEX}/JOB/../x", f"../{HEX}/JOB/x", f"{HEX}/other/image-0-1", "/etc/passwd", f"{HEX}/JOB/x.y", f"{HEX}//x", ""],
)
def test_a_reference_to_anything_but_an_object_of_the_job_is_refused(name: str, store: Store, create: Create) -> None:
    """Another program, or a tenant with a way into Redis, cannot have the server read other objects."""
    job = create(store=store)
    start(store, job.id)
    name = name.replace("JOB", job.id)
    store.client.set(keys.image(job.id, 0), MAGIC + f"5:{name}".encode())
    assert store.image(job.id, 0) is None
    with pytest.raises(RecordError):
        Reference.parse(MAGIC + f"5:{name}".encode(), job.id)
    event = {"type": "frame", "job": job.id, "object": name, "size": 5, "start": 0, "end": 5}
    assert store.results.with_frame(event) is None


@pytest.mark.parametrize("numbers", [(5, 0, 6), (5, -1, 5), (5, 3, 3), (5, "0", 5), (5, True, 5), (None, 0, 5)])
def test_a_frame_outside_its_object_is_no_frame(numbers: tuple[Any, Any, Any]) -> None:
    size, begin, end = numbers
    event = {"job": "a", "object": f"{HEX}/a/frames-1-1-0", "size": size, "start": begin, "end": end}
    assert FramePlace.of(event) is None


def test_damaged_keys_of_the_ledger_are_replaced(store: Store, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    for key in (keys.RESULT_BYTES, keys.RESULT_FRAMES, keys.RESULTS_DUE, keys.objects(job.id)):
        store.client.set(key, "damaged")
    assert store.write(JobUpdate(job.id, 1, 1, images={0: PICTURE}, events=[frame(0)]))
    assert store.image(job.id, 0) == PICTURE
    store.client.hset(keys.RESULT_BYTES, "image", "many")
    assert store.write(JobUpdate(job.id, 1, 2, images={0: PICTURE}))


def test_a_lost_or_shortened_object_is_no_picture(store: Store, create: Create) -> None:
    job = create(store=store)
    start(store, job.id)
    update = saved(job, 1)
    update.images = {0: PICTURE}
    store.write(update)
    place, folder = store.results.store, f"{store.results.ledger.folder()}/{job.id}"
    assert place is not None
    place.write({f"{folder}/image-0-1": PICTURE[:-1]})
    assert store.image(job.id, 0) is None
    place.delete([f"{folder}/resume-1-1"])
    started = store.attempts.start(job.id, "another worker", "fake")
    assert started is not None
    assert started.resume_point == b"", "it counts as damaged: the job starts over"


def test_programs_with_different_places_are_told_at_the_start(store: Store, tmp_path: Path) -> None:
    store.results.join()
    again = Store(store.client, 3600, ResultSettings("x"), ResultStore(store.results.store.url, 5.0))  # type: ignore[union-attr]
    again.results.join()
    elsewhere = Store(store.client, 3600, ResultSettings("x"), ResultStore(f"file://{tmp_path}/elsewhere", 5.0))
    with pytest.raises(StoreUnfit, match="another one than that of the other programs on this Redis"):
        elsewhere.results.join()


def test_two_redises_share_a_place_without_reading_each_others_objects(
    store: Store, create: Create, client: redis.Redis
) -> None:
    job = create(job_id="same", store=store)
    start(store, job.id)
    store.write(JobUpdate(job.id, 1, 1, images={0: PICTURE}))
    first = store.results.ledger.folder()
    client.flushall()
    second = Store(client, 3600, ResultSettings("x"), store.results.store)
    job = create(job_id="same", store=second)
    start(second, job.id)
    second.write(JobUpdate(job.id, 1, 1, images={0: b"of the second"}))
    assert second.results.ledger.folder() != first
    assert hashlib.sha256(second.image(job.id, 0) or b"").digest() == hashlib.sha256(b"of the second").digest()
    assert store.results.store is not None
    assert store.results.store.read(f"{first}/same/image-0-1") == PICTURE
