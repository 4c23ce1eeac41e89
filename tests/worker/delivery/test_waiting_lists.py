"""The waiting lists in Redis: workers draw from them as `draw_order` says, and nothing that waits is lost."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoised.app.admission.queue.job_queue import JobQueue
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store
from denoised.jobs.store.waiting_lists import QUANTUM
from denoised.worker.delivery.rq_delivery import RqDelivery, RqNames, RqSource
from tests.harness import request

QUEUE = QueueKeys("fake", "rq:queue:fake", "rq:queue:fake:intermediate", "rq:wip:fake", "rq:job:")
NAMES = RqNames("rq:execution", "rq:executions:", "rq:worker:w:executions", "rq:queues")


@pytest.fixture
def queue(client: redis.Redis) -> JobQueue:
    return JobQueue(client, Store(client), max_attempts=3)


@pytest.fixture
def source(client: redis.Redis) -> RqSource:
    return RqSource(client, "w", NAMES, 30)


def job(owner: str = "", steps: int = 20, priority: str = "normal", weight: float = 1.0, n: int = 1) -> JobRecord:
    asked = request(steps=steps, priority=priority, n=n)
    return JobRecord(uuid.uuid4().hex, owner, asked, 1.0, weight=weight)


def enqueue(queue: JobQueue, jobs: Sequence[JobRecord]) -> None:
    for each in jobs:
        queue.enqueue(each, QueueEstimate())


def take(source: RqSource, passed_over: Sequence[str] = ()) -> RqDelivery | None:
    delivery, dropped = source.take(QUEUE, passed_over=passed_over)
    assert not dropped
    return delivery


def drain(source: RqSource) -> list[str]:
    drawn = []
    while (delivery := take(source)) is not None:
        drawn.append(delivery.job)
    return drawn


JOBS = st.lists(
    st.tuples(
        st.sampled_from(["", "ann", "bob", "eve"]),
        st.sampled_from([1, 5, 20, 63, 64, 65, 200, 1000]),
        st.sampled_from(PRIORITIES),
        st.sampled_from([1, 4]),
    ),
    max_size=24,
)
WEIGHTS = {"": 1.0, "ann": 1.0, "bob": 0.25, "eve": 3.0}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=JOBS, later=JOBS, draws=st.integers(0, 30))
def test_workers_draw_in_the_forecast_order(
    client: redis.Redis,
    queue: JobQueue,
    source: RqSource,
    first: list[tuple[str, int, str, int]],
    later: list[tuple[str, int, str, int]],
    draws: int,
) -> None:
    """The script and `draw_order` compute the same, from the start and from any state that draws have left."""
    client.flushall()
    enqueue(queue, [job(owner, steps, priority, WEIGHTS[owner], n) for owner, steps, priority, n in first])
    expected = [each.id for each in queue.snapshot(["fake"]).waiting["fake"]]
    drawn = [delivery.job for _ in range(draws) if (delivery := take(source)) is not None]
    assert drawn == expected[:draws]
    for owner, steps, priority, n in later:
        new = job(owner, steps, priority, WEIGHTS[owner], n)
        predicted = [each.id for each in queue.snapshot(["fake"]).with_job(new).waiting["fake"]]
        enqueue(queue, [new])
        assert [each.id for each in queue.snapshot(["fake"]).waiting["fake"]] == predicted
    expected = [each.id for each in queue.snapshot(["fake"]).waiting["fake"]]
    assert drain(source) == expected
    assert not client.exists(keys.turns("fake"), keys.caller_credits("fake")), (
        "nothing is left of callers that are gone"
    )


def test_jobs_of_callers_without_keys_are_drawn_in_the_order_of_acceptance(queue: JobQueue, source: RqSource) -> None:
    jobs = [job(steps=steps) for steps in (1000, 1, 20, 700)]
    enqueue(queue, jobs)
    assert drain(source) == [each.id for each in jobs]


def test_a_caller_that_begins_to_wait_is_next(queue: JobQueue, source: RqSource) -> None:
    enqueue(queue, [job("ann") for _ in range(100)])
    for _ in range(50):
        take(source)
    single = job("bob")
    enqueue(queue, [single])
    assert queue.snapshot(["fake"]).waiting["fake"][0].id == single.id
    delivery = take(source)
    assert delivery is not None
    assert delivery.job == single.id


def test_jobs_sent_one_by_one_have_no_advantage(queue: JobQueue, source: RqSource) -> None:
    """Bob sends the next job as soon as the last one is drawn, and gets half of the draws, not all."""
    enqueue(queue, [job("ann") for _ in range(200)])
    drawn: Counter[str] = Counter()
    owners = {}
    for _ in range(100):
        if not any(each.owner == "bob" for each in queue.snapshot(["fake"]).waiting["fake"]):
            single = job("bob")
            owners[single.id] = "bob"
            enqueue(queue, [single])
        delivery = take(source)
        assert delivery is not None
        drawn[owners.get(delivery.job, "ann")] += 1
    assert 20 <= drawn["bob"] <= 50


@pytest.mark.parametrize("weight", [0.5, 1.0, 4.0])
def test_evaluations_are_drawn_in_proportion_to_the_weights(queue: JobQueue, source: RqSource, weight: float) -> None:
    """Whatever the sizes of the jobs: Ann's are of 20 evaluations, Bob's of 400."""
    ann, bob = [job("ann") for _ in range(400)], [job("bob", 100, n=4, weight=weight) for _ in range(40)]
    enqueue(queue, [*ann, *bob])
    cost = {each.id: each.request.evaluations for each in (*ann, *bob)}
    drawn: Counter[str] = Counter()
    while min(len(ann), len(bob)) > 2:
        delivery = take(source)
        assert delivery is not None
        owner, jobs = ("ann", ann) if any(each.id == delivery.job for each in ann[:1]) else ("bob", bob)
        assert jobs.pop(0).id == delivery.job, "in the order of each list"
        drawn[owner] += cost[delivery.job]
    assert drawn["bob"] / drawn["ann"] == pytest.approx(weight, rel=0.15)


def test_nobody_of_200_keys_starves(queue: JobQueue, source: RqSource) -> None:
    """Each has had its quantum and one job at most before anybody has two more."""
    jobs = [job(f"key-{k}", steps=20 if k % 3 else 150) for k in range(200) for _ in range(4)]
    owners = {each.id: (each.owner, each.request.evaluations) for each in jobs}
    enqueue(queue, jobs)
    drawn: Counter[str] = Counter(dict.fromkeys({each.owner for each in jobs}, 0))
    left = Counter(each.owner for each in jobs)
    while (delivery := take(source)) is not None:
        owner, cost = owners[delivery.job]
        drawn[owner] += cost
        left[owner] -= 1
        waiting = [drawn[each] for each in left if left[each]]
        assert drawn[owner] - min(waiting, default=drawn[owner]) <= 2 * (QUANTUM + 150)
    assert not left.total()


def test_priority_orders_the_jobs_of_one_caller_only(queue: JobQueue, source: RqSource) -> None:
    low, normal, high, others = job("ann", priority="low"), job("ann"), job("ann", priority="high"), job("bob")
    enqueue(queue, [low, normal, high, others])
    drawn = drain(source)
    assert [each for each in drawn if each != others.id] == [high.id, normal.id, low.id]
    assert drawn.index(others.id) < 4
    urgent = [job("ann", 64, "high") for _ in range(4)]
    enqueue(queue, [*urgent, *(theirs := [job("bob", 64, "low") for _ in range(4)])])
    assert drain(source) == [each.id for pair in zip(urgent, theirs, strict=True) for each in pair]


def test_a_requeued_job_is_the_very_next_and_is_paid_once(
    queue: JobQueue, source: RqSource, client: redis.Redis
) -> None:
    enqueue(queue, [job(owner, 64) for owner in ("ann", "bob", "eve") for _ in range(3)])
    expected = [each.id for each in queue.snapshot(["fake"]).waiting["fake"]]
    first, second = take(source), take(source)
    assert first is not None
    assert second is not None
    second.requeue()
    first.requeue()
    drawn = drain(source)
    assert sorted(drawn) == sorted(expected)
    assert drawn[0] == first.job
    assert drawn.index(second.job) <= 2, "Ann has the quantum of her next turn already"
    assert not client.exists(keys.turns("fake"), keys.caller_credits("fake"))


def test_jobs_of_lost_workers_go_back_to_the_front_of_their_lists(
    queue: JobQueue, source: RqSource, client: redis.Redis
) -> None:
    jobs = [job(owner, priority=priority) for owner in ("ann", "bob") for priority in ("high", "normal")]
    enqueue(queue, jobs)
    lost = [take(source), take(source)]
    for delivery in lost:
        assert delivery is not None
        client.zadd(QUEUE.started, {f"{delivery.job}:{delivery.execution}": 1.0})
    assert Store(client).attempts.requeue_lost(QUEUE, 10.0) == 2
    assert client.llen("rq:queue:fake") == 0
    assert client.llen("rq:queue:fake/ann/high") == 1
    drawn = drain(source)
    assert {*drawn[:2]} == {delivery.job for delivery in lost if delivery is not None}
    assert sorted(drawn) == sorted(each.id for each in jobs)


def test_a_canceled_job_leaves_its_list(queue: JobQueue, source: RqSource) -> None:
    jobs = [job("ann"), job("ann", priority="low"), job()]
    enqueue(queue, jobs)
    for each in jobs[:2]:
        queue.remove(each)
    assert drain(source) == [jobs[2].id]


def test_callers_at_their_limit_are_passed_over_and_keep_their_turn(queue: JobQueue, source: RqSource) -> None:
    ann, bob = [job("ann"), job("ann")], [job("bob")]
    enqueue(queue, [*ann, *bob])
    delivery = take(source, ["ann"])
    assert delivery is not None
    assert delivery.job == bob[0].id
    assert take(source, ["ann"]) is None
    assert drain(source) == [each.id for each in ann]


def test_a_job_that_must_have_waited_stays(queue: JobQueue, source: RqSource, client: redis.Redis) -> None:
    now = client.time()[0]
    fresh = JobRecord("fresh", "ann", request(), float(now))
    enqueue(queue, [fresh])
    assert source.take(QUEUE, waited=3600.0) == (None, [])
    assert drain(source) == ["fresh"]


@pytest.mark.parametrize("damage", ["deleted", "of another type"])
def test_lost_turns_are_restored(queue: JobQueue, source: RqSource, client: redis.Redis, damage: str) -> None:
    jobs = [job("ann"), job("bob", priority="high"), job()]
    enqueue(queue, jobs)
    for key in (keys.turns("fake"), keys.caller_credits("fake")):
        client.delete(key)
        if damage == "of another type":
            client.lpush(key, "x")
    source.restore_turns(QUEUE)
    assert sorted(drain(source)) == sorted(each.id for each in jobs)


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf", "-5", "x"])
def test_damaged_costs_weights_and_credits_stop_nobody(
    queue: JobQueue, source: RqSource, client: redis.Redis, value: str
) -> None:
    jobs = [job("ann"), job("bob"), job("bob")]
    enqueue(queue, jobs)
    client.hset(f"rq:job:{jobs[0].id}", mapping={"cost": value, "weight": value})
    client.hset(keys.caller_credits("fake"), mapping={"ann": value, "bob": value})
    assert len(queue.snapshot(["fake"]).waiting["fake"]) == 3
    assert sorted(drain(source)) == sorted(each.id for each in jobs)


def test_jobs_of_an_earlier_front_end_are_drawn_and_can_be_canceled(
    queue: JobQueue, source: RqSource, client: redis.Redis
) -> None:
    """It adds the jobs of all callers to the model's own queue, and names neither cost nor turns."""
    old = [job("ann"), job("bob")]
    enqueue(queue, old)
    client.delete(keys.turns("fake"), "rq:queue:fake/ann/normal", "rq:queue:fake/bob/normal")
    for each in old:
        client.hset(f"rq:job:{each.id}", "origin", "fake")
        client.hdel(f"rq:job:{each.id}", "cost", "weight")
        client.rpush("rq:queue:fake", each.id)
    assert len(queue.snapshot(["fake"]).waiting["fake"]) == 2
    queue.remove(old[0])
    assert drain(source) == [old[1].id]
