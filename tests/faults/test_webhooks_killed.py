"""Front ends, workers and Redis are killed between the end of a job and the delivery of its webhook: it arrives."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.faults.site import Api, Site
from tests.webhook_receiver import SECRET, Receiver

TIMEOUT = 1.0  # of an attempt; the lease of one is 7 s


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def open_site_with_webhooks(open_site: Callable[..., Site], receiver: Receiver) -> Callable[[int], Site]:
    """`open_site_with_webhooks(apis)`: a site whose APIs deliver to `receiver`, with a worker."""

    def opened(apis: int) -> Site:
        environment = {
            "DENOISED_WEBHOOK_PRIVATE_HOSTS": receiver.origin,
            "DENOISED_WEBHOOK_SECRETS": SECRET,
            "DENOISED_WEBHOOK_TIMEOUT": str(TIMEOUT),
        }
        site = open_site(apis=apis, environment=environment)
        site.harness.worker("fake", seconds=0.002, lease=2.0)
        site.ready()
        return site

    return opened


def post(api: Api, receiver: Receiver, **fields: object) -> str:
    with api.client() as client:
        answer = client.post("/generate", json={"steps": 5, "webhook": f"{receiver.origin}/ended", **fields})
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def delivery_status(site: Site, job: str) -> str:
    return site.harness.store.webhooks.deliveries([job])[job].status


def ids(receiver: Receiver) -> Counter[str]:
    return Counter(json.loads(each.body)["id"] for each in receiver.received)


def test_a_front_end_killed_during_a_delivery_leaves_it_to_another(
    open_site_with_webhooks: Callable[[int], Site], receiver: Receiver, report: Callable[..., None]
) -> None:
    """SIGKILL to the one that sends; the other repeats the attempt, with the same id, when the lease ends."""
    site = open_site_with_webhooks(2)
    receiver.hold.clear()
    first, second = site.apis
    second.send(signal.SIGSTOP)  # so that the first one sends
    job = post(first, receiver)
    site.until(lambda: receiver.received, "the first attempt")
    first.end(signal.SIGKILL)
    receiver.hold.set()
    second.send(signal.SIGCONT)
    seconds = site.until(lambda: delivery_status(site, job) == "delivered", "the delivery")
    report(repeated_after=f"{seconds:.1f} s")
    assert len(receiver.received) == 2
    assert {each.headers["webhook-id"] for each in receiver.received} == {f"msg_{job}"}
    assert {each.body for each in receiver.received} == {receiver.received[0].body}


def test_webhooks_of_jobs_that_end_without_a_front_end_are_delivered_by_the_next_one(
    open_site_with_webhooks: Callable[[int], Site], receiver: Receiver
) -> None:
    site = open_site_with_webhooks(1)
    jobs = [post(site.api, receiver, steps=200, seed=seed) for seed in range(5)]
    canceled = post(site.api, receiver, steps=1000, n=16)
    site.api.end(signal.SIGKILL)
    site.harness.store.cancel(canceled)
    for job in jobs:
        site.harness.finished(job)
    assert receiver.received == []
    site.api.start()
    site.until(lambda: all(delivery_status(site, job) == "delivered" for job in [*jobs, canceled]), "the deliveries")
    assert ids(receiver) == Counter([*jobs, canceled])


@pytest.mark.faults
def test_no_webhook_is_lost_while_front_ends_workers_and_redis_are_killed(
    open_site_with_webhooks: Callable[[int], Site], receiver: Receiver, report: Callable[..., None]
) -> None:
    """60 jobs; in between, each kind of program is killed and started again. Each end arrives, a few of them twice."""
    site = open_site_with_webhooks(2)
    jobs: list[str] = []
    for k in range(6):
        jobs += [post(site.apis[k % 2], receiver, steps=20, seed=seed) for seed in range(10)]
        match k % 3:
            case 0:
                site.apis[k % 2].end(signal.SIGKILL)
                site.apis[k % 2].start()
            case 1:
                site.harness.workers[-1].kill()
                site.harness.worker("fake", seconds=0.002, lease=2.0)
            case 2:
                site.valkey.end(signal.SIGKILL)
                site.valkey.start()
                site.until(site.answers, "Valkey")
        site.ready()
    for job in jobs:
        site.harness.finished(job)
    site.until(lambda: all(delivery_status(site, job) == "delivered" for job in jobs), "the deliveries")
    received = ids(receiver)
    report(received=received.total(), jobs=len(jobs))
    assert received.keys() == set(jobs)
    assert all(each.headers["webhook-id"] == f"msg_{json.loads(each.body)['id']}" for each in receiver.received)
