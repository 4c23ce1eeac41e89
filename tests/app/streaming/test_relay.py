"""Events from Redis to listeners: in order, at each listener's speed, and always with the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from denoised.app.streaming.event_listener import BUFFER_BYTES, BUFFER_SIZE, EventListener, JobGone, ServerClosing
from denoised.app.streaming.relay import MAX_LAG, Relay
from denoised.jobs.redis.connection import connect

TIMEOUT_SECONDS = 120.0
Event = dict[str, Any]


def progress(seq: int) -> Event:
    return {"seq": seq, "type": "progress", "job": "a"}


def end(seq: int) -> Event:
    return {"seq": seq, "type": "succeeded", "job": "a"}


async def drained(listener: EventListener) -> list[Event]:
    found = []
    while (event := await listener.next(0.01)) is not None:
        found.append(event)
    return found


def test_a_listener_with_a_full_buffer_is_behind_until_it_catches_up() -> None:
    async def main() -> None:
        listener = EventListener("a")
        for seq in range(BUFFER_SIZE):
            listener.offer(progress(seq))
        assert not listener.behind
        listener.offer(end(BUFFER_SIZE))
        assert listener.behind
        assert await drained(listener) == [], "nothing is buffered until then"
        listener.catch_up()
        listener.offer(end(BUFFER_SIZE))
        assert await drained(listener) == [end(BUFFER_SIZE)]

    asyncio.run(main())


def test_a_listener_that_keeps_up_loses_nothing() -> None:
    async def main() -> None:
        listener = EventListener("a")
        for seq in range(BUFFER_SIZE):
            listener.offer(progress(seq))
        assert [event["seq"] for event in await drained(listener)] == list(range(BUFFER_SIZE))

    asyncio.run(main())


def test_a_closed_listener_first_returns_its_buffer() -> None:
    async def main() -> None:
        listener = EventListener("a")
        listener.offer(end(1))
        listener.close()
        assert (await listener.next())["type"] == "succeeded"  # type: ignore[index]
        with pytest.raises(ServerClosing):
            await listener.next()

    asyncio.run(main())


@pytest.fixture
def relayed(fake_worker: Any, valkey_url: str) -> Callable[[Callable[[Relay], Coroutine[Any, Any, None]]], None]:
    """`relayed(body)`: run a coroutine with a started relay."""

    @asynccontextmanager
    async def reading() -> AsyncIterator[Relay]:
        relay = Relay(fake_worker.store, connect(valkey_url, timeout=30.0))
        relay.start()
        try:
            yield relay
        finally:
            await relay.stop()

    def run(body: Callable[[Relay], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with reading() as relay:
                await asyncio.wait_for(body(relay), TIMEOUT_SECONDS)

        asyncio.run(main())

    return run


async def collected(relay: Relay, job_id: str, after: int = 0) -> list[Event]:
    return [event async for event in relay.events(job_id, after) if event is not None]


def work(fake_worker: Any, job_id: str, steps: int, pause: float = 0.0) -> None:
    attempt = fake_worker.start(job_id)
    for k in range(steps):
        fake_worker.progress(job_id, attempt, k + 1)
        time.sleep(pause)
    fake_worker.finish(job_id, attempt)


def test_stored_and_live_events_join_without_a_gap(fake_worker: Any, relayed: Any) -> None:
    """Listeners that start at any moment of a job receive each of its events once."""

    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        working = asyncio.create_task(asyncio.to_thread(work, fake_worker, job_id, 150, 0.002))
        listening = []
        while not working.done():
            listening.append(asyncio.create_task(collected(relay, job_id)))
            await asyncio.sleep(0.02)
        await working
        listening.append(asyncio.create_task(collected(relay, job_id)))
        everything = [event["seq"] for event in fake_worker.store.events.read(job_id)]
        assert len(listening) > 3
        for received in await asyncio.gather(*listening):
            assert [event["seq"] for event in received] == everything
            assert received[-1]["type"] == "succeeded"
            assert received[-1]["result"]["status"] == "succeeded"
        assert relay.listeners == 0

    relayed(body)


def test_a_followed_job_is_marked_as_watched(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        watched, other = fake_worker.create(), fake_worker.create()
        events = relay.events(watched)
        first = await anext(events)
        assert first is not None
        assert first["type"] == "queued"
        assert fake_worker.store.job(watched).watched
        assert not fake_worker.store.job(other).watched
        await events.aclose()

    relayed(body)


def test_a_listener_continues_after_a_seq(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        await asyncio.to_thread(work, fake_worker, job_id, 10)
        assert [event["seq"] for event in await collected(relay, job_id, after=5)] == list(range(6, 15))

    relayed(body)


def test_listeners_receive_only_the_events_of_their_job(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        jobs = [fake_worker.create() for _ in range(8)]
        listening = [asyncio.create_task(collected(relay, job_id)) for job_id in jobs for _ in range(12)]
        await asyncio.gather(*(asyncio.to_thread(work, fake_worker, job_id, 20) for job_id in jobs))
        for k, received in enumerate(await asyncio.gather(*listening)):
            assert {event["job"] for event in received} == {jobs[k // 12]}
            assert [event["seq"] for event in received] == list(range(1, 25))

    relayed(body)


def test_a_listener_that_never_reads_delays_no_other(fake_worker: Any, relayed: Any) -> None:
    """ComfyUI#6427: nothing is buffered for it; when it reads again, it gets the newest events and the end."""

    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        lazy = relay.events(job_id)
        assert (await anext(lazy))["type"] == "queued"  # type: ignore[index]
        eager = asyncio.create_task(collected(relay, job_id))
        await asyncio.to_thread(work, fake_worker, job_id, 2 * MAX_LAG)
        assert (await eager)[-1]["type"] == "succeeded"
        late = [event async for event in lazy if event is not None]
        kinds = [event["type"] for event in late]
        assert kinds[0] == "started"
        assert kinds[-2:] == ["image", "succeeded"]
        assert 32 <= kinds.count("progress") <= MAX_LAG // 2
        seqs = [event["seq"] for event in late]
        assert seqs == sorted(set(seqs))
        assert seqs[-30:] == list(range(seqs[-1] - 29, seqs[-1] + 1)), "the newest without a gap"

    relayed(body)


def test_a_slightly_slow_listener_misses_nothing(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        slow = relay.events(job_id)
        assert (await anext(slow))["type"] == "queued"  # type: ignore[index]
        await asyncio.to_thread(work, fake_worker, job_id, 3 * BUFFER_SIZE)
        late = [event["seq"] async for event in slow if event is not None]
        assert late == list(range(2, late[-1] + 1))
        assert len(late) > 3 * BUFFER_SIZE

    relayed(body)


def test_a_job_whose_listeners_are_all_behind_is_not_read(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        lazy = relay.events(job_id)
        assert (await anext(lazy))["type"] == "queued"  # type: ignore[index]
        reading = asyncio.create_task(anext(lazy))
        attempt = fake_worker.start(job_id)
        assert (await reading)["type"] == "started"  # type: ignore[index]
        for number in range(1, 2 * BUFFER_SIZE):
            await asyncio.to_thread(fake_worker.progress, job_id, attempt, number)
        await asyncio.sleep(0.1)
        assert relay.followed == 0
        fake_worker.finish(job_id, attempt)
        rest = [event async for event in lazy if event is not None]
        assert [event["type"] for event in rest[-2:]] == ["image", "succeeded"]
        assert relay.followed == 0

    relayed(body)


def test_silence_is_reported_after_each_quiet_interval(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        events = relay.events(fake_worker.create(), quiet=0.01)
        assert (await anext(events))["type"] == "queued"  # type: ignore[index]
        assert await anext(events) is None
        assert await anext(events) is None
        await events.aclose()  # type: ignore[attr-defined]
        assert relay.listeners == 0

    relayed(body)


def test_on_shutdown_every_stream_ends_and_no_new_one_starts(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        listening = [asyncio.create_task(collected(relay, job_id)) for _ in range(3)]
        waiting = asyncio.create_task(relay.wait_for_end(job_id, TIMEOUT_SECONDS))
        await asyncio.sleep(0.2)
        relay.close_listeners()
        outcomes = await asyncio.gather(*listening, waiting, return_exceptions=True)
        assert all(isinstance(outcome, ServerClosing) for outcome in outcomes)
        with pytest.raises(ServerClosing):
            await collected(relay, job_id)

    relayed(body)


def test_a_seq_beyond_the_last_event_still_ends_with_the_job(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        listening = asyncio.create_task(collected(relay, job_id, after=10**9))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(work, fake_worker, job_id, 3)
        assert await listening == []

    relayed(body)


def test_a_job_that_expires_during_the_read_ends_its_stream(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        await asyncio.to_thread(work, fake_worker, job_id, 600)
        events = relay.events(job_id)
        first = await anext(events)
        assert first is not None
        for key in fake_worker.client.scan_iter(f"denoised:job:{job_id}*"):
            fake_worker.client.delete(key)
        rest = []
        with pytest.raises(JobGone):
            rest += [event async for event in events]
        assert len(rest) < 600

    relayed(body)


@pytest.mark.parametrize("count", [BUFFER_SIZE + 1, 3 * BUFFER_SIZE, 600])
def test_a_waiting_listener_that_receives_more_than_its_buffer_at_once_continues(
    count: int, fake_worker: Any, relayed: Any
) -> None:
    """Three of eight streams ended in the middle of their job."""

    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        listening = [asyncio.create_task(collected(relay, job_id)) for _ in range(8)]
        await asyncio.sleep(0.2)
        attempt = fake_worker.start(job_id)
        await asyncio.sleep(0.1)
        burst = [{"type": "progress", "step": k, "steps": count, "evaluations": k} for k in range(count)]
        await asyncio.to_thread(fake_worker.progress, job_id, attempt, 1, *burst)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(fake_worker.finish, job_id, attempt)
        everything = [event["seq"] for event in fake_worker.store.events.read(job_id, count=1000)]
        for received in await asyncio.gather(*listening):
            seqs = [event["seq"] for event in received]
            assert seqs == everything if count < MAX_LAG else seqs == sorted(set(seqs))
            assert received[-1]["type"] == "succeeded"

    relayed(body)


def test_a_burst_while_it_waits_leaves_a_listener_behind_and_open() -> None:
    async def main() -> None:
        listener = EventListener("a")
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        for seq in range(2 * BUFFER_SIZE):
            listener.offer(progress(seq))
        assert await waiting is None
        assert listener.behind
        listener.catch_up()
        listener.offer(end(1000))
        assert await listener.next() == end(1000)

    asyncio.run(main())


def test_the_buffer_of_a_listener_is_bounded_in_bytes() -> None:
    listener = EventListener("a")
    for seq in range(6):
        listener.offer({**progress(seq), "data": "x" * (BUFFER_BYTES // 4)})
    assert listener.behind
    lonely = EventListener("a")
    lonely.offer({**progress(1), "data": "x" * (2 * BUFFER_BYTES)})
    assert not lonely.behind, "one event of any size fits"


def test_stored_events_are_read_in_pages_of_limited_size(fake_worker: Any) -> None:
    """500 listeners that stood still cost 352 MiB."""
    job_id = fake_worker.create()
    attempt = fake_worker.start(job_id)
    frames = [{"type": "frame", "data": "x" * 50_000, "step": k} for k in range(20)]
    fake_worker.progress(job_id, attempt, 1, *frames)
    page = fake_worker.store.events.page(job_id, 0, 120_000)
    assert [event["seq"] for event in page.events] == [1, 2, 3, 4, 5]
    assert page.last == 5
    rest = fake_worker.store.events.page(job_id, 5, 1)
    assert [event["seq"] for event in rest.events] == [6], "one event of any size"
    assert fake_worker.store.events.page(job_id, 22, 1).last is None


def test_the_streams_of_a_flushed_store_end_within_seconds(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.app.streaming.relay.GONE_CHECK_SECONDS", 0.2)

    async def body(relay: Relay) -> None:
        jobs = [fake_worker.create() for _ in range(3)]
        listening = [asyncio.create_task(collected(relay, job_id)) for job_id in jobs]
        waiting = asyncio.create_task(relay.wait_for_end(jobs[0], 10.0))
        await asyncio.sleep(0.3)
        fake_worker.client.flushall()
        late = asyncio.create_task(collected(relay, jobs[0]))
        ends = await asyncio.gather(*listening, late, return_exceptions=True)
        assert all(isinstance(end, JobGone) for end in ends)
        assert await waiting is None
        other = fake_worker.create()
        follow = asyncio.create_task(collected(relay, other))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(work, fake_worker, other, 3)
        assert (await follow)[-1]["type"] == "succeeded", "the store works again"

    relayed(body)


def entry(fields: dict[str, str]) -> dict[Any, Any]:
    return dict(fields)


BAD = [
    {"x": "y"},
    {"a": "one", "e": "{}"},
    {"a": "1", "e": "["},
    {"a": "1", "e": '{"type": [1]}'},
    {"a": "1", "e": "7"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_one_bad_entry_costs_itself_alone(bad: dict[str, str], fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id, other = fake_worker.create(), fake_worker.create()
        listening = [asyncio.create_task(collected(relay, each)) for each in (job_id, other)]
        await asyncio.sleep(0.2)
        client = fake_worker.client
        client.xadd(f"denoised:job:{job_id}:events", entry(bad), id="2-0")
        client.hset(f"denoised:job:{job_id}", "seq", 2)
        client.xadd("denoised:ends", {"no": "job"})
        client.xadd("denoised:ends", {"job": b"\xff"})
        await asyncio.sleep(0.2)
        for each in (job_id, other):
            await asyncio.to_thread(work, fake_worker, each, 2)
        received, others = await asyncio.gather(*listening)
        assert [event["seq"] for event in received] == [1, *range(3, 8)]
        assert others[-1]["type"] == "succeeded"
        assert [event["seq"] for event in await collected(relay, job_id)] == [1, *range(3, 8)], "as stored"
        assert relay.alive

    relayed(body)


def test_a_key_of_another_type_delays_only_its_own_listeners(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        broken, other = fake_worker.create(), fake_worker.create()
        listening = [asyncio.create_task(collected(relay, each)) for each in (broken, other)]
        await asyncio.sleep(0.2)
        fake_worker.client.set(f"denoised:job:{broken}:events", "text")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(work, fake_worker, other, 3)
        assert (await listening[1])[-1]["type"] == "succeeded"
        assert relay.alive
        listening[0].cancel()

    relayed(body)


def test_a_defect_in_the_reader_is_logged_and_does_not_end_it(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(relay: Relay) -> None:
        decode, calls = fake_worker.store.events.decode, []

        def failing(job_id: str, entries: Any) -> Any:
            calls.append(job_id)
            if len(calls) == 1:
                raise ZeroDivisionError
            return decode(job_id, entries)

        job_id = fake_worker.create()
        listening = asyncio.create_task(collected(relay, job_id))
        await asyncio.sleep(0.2)
        monkeypatch.setattr(fake_worker.store.events, "decode", failing)
        await asyncio.to_thread(work, fake_worker, job_id, 3, 0.3)
        assert (await listening)[-1]["type"] == "succeeded"
        assert relay.alive

    relayed(body)
    assert "ZeroDivisionError" in caplog.text


def test_a_reader_that_has_ended_is_logged_and_reported(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def end_thread() -> None:
        raise SystemExit

    async def body(relay: Relay) -> None:
        assert relay.alive
        monkeypatch.setattr(relay._reader, "_read", end_thread)
        await asyncio.to_thread(relay._reader._thread.join)
        assert not relay.alive

    relayed(body)
    assert "the event reader has ended" in caplog.text


def test_waiting_returns_the_ended_job_or_its_state_on_timeout(fake_worker: Any, relayed: Any) -> None:
    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        waiting = asyncio.create_task(relay.wait_for_end(job_id, TIMEOUT_SECONDS))
        await asyncio.to_thread(work, fake_worker, job_id, 3)
        outcome = await waiting
        assert outcome is not None
        assert outcome.record.status == "succeeded"
        assert (await relay.wait_for_end(job_id, 0.0)) == outcome
        open_job = fake_worker.create()
        unfinished = await relay.wait_for_end(open_job, 0.01)
        assert unfinished is not None
        assert unfinished.record.status == "queued"
        assert await relay.wait_for_end("nobody", 0.01) is None

    relayed(body)


def test_waiting_for_an_end_does_not_read_the_progress(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "denoised.app.streaming.relay.POLL_SECONDS", 10 * TIMEOUT_SECONDS
    )  # never within the test: only the notification is left

    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        waiting = asyncio.create_task(relay.wait_for_end(job_id, TIMEOUT_SECONDS))
        await asyncio.sleep(0.1)
        assert relay.followed == relay.listeners == 0
        await asyncio.to_thread(work, fake_worker, job_id, 3)
        outcome = await waiting
        assert outcome is not None
        assert outcome.record.terminal

    relayed(body)


def test_waiting_just_after_the_end_returns_at_once_with_the_picture(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may end between its acceptance and the start of the wait, and is not read in between."""
    monkeypatch.setattr("denoised.app.streaming.relay.POLL_SECONDS", 10 * TIMEOUT_SECONDS)

    async def body(relay: Relay) -> None:
        job_id = fake_worker.create()
        before = asyncio.create_task(relay.wait_for_end(job_id, TIMEOUT_SECONDS))
        await asyncio.to_thread(work, fake_worker, job_id, 3)
        await before
        outcome = await relay.wait_for_end(job_id, TIMEOUT_SECONDS, pictures=2)
        assert outcome is not None
        assert outcome.record.terminal
        assert list(outcome.pictures) == [0]

    relayed(body)


def test_an_end_whose_notification_is_lost_is_found_by_polling(
    fake_worker: Any, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.app.streaming.relay.POLL_SECONDS", 0.1)

    async def body(relay: Relay) -> None:
        monkeypatch.setattr(relay, "_job_ended", lambda jobs: None)
        job_id = fake_worker.create()
        waiting = asyncio.create_task(relay.wait_for_end(job_id, TIMEOUT_SECONDS))
        await asyncio.to_thread(work, fake_worker, job_id, 3)
        outcome = await waiting
        assert outcome is not None
        assert outcome.record.terminal

    relayed(body)
