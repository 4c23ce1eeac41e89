"""Workers killed at any moment: other workers finish their jobs with the same bytes; jobs that kill workers fail."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from denoised.jobs.record import TERMINAL
from tests.faults.site import Site
from tests.harness import Harness, WorkerProcess

TURN_SECONDS = 0.01
JOBS: list[dict[str, Any]] = [
    {"steps": 150, "sampler": "ddpm", "seed": 1, "label": 0},
    {"steps": 200, "sampler": "dpmpp_2m", "seed": 2, "label": 1, "n": 3},
    {"steps": 120, "sampler": "euler_a", "seed": 3, "label": 0, "guidance_scale": 2.0, "preview_every": 40},
    {"steps": 90, "sampler": "heun", "seed": 4, "format": "webp"},
    {"steps": 180, "sampler": "ddim", "eta": 0.7, "seed": 5, "label": 1},
]


def check_events(stored: list[dict[str, Any]]) -> None:
    """`seq` without gaps, steps rising within an attempt, attempts rising, one terminal event, the last."""
    assert [event["seq"] for event in stored] == list(range(1, len(stored) + 1))
    attempts = [event["attempt"] for event in stored]
    assert attempts == sorted(attempts)
    for attempt in set(attempts):
        steps = [event["step"] for event in stored if event["attempt"] == attempt and event["type"] == "progress"]
        assert steps == sorted(set(steps))
    assert [event["type"] for event in stored if event["type"] in TERMINAL] == [stored[-1]["type"]]


def rows_made(harness: Harness) -> Counter[float]:
    """How often each row was evaluated, by all workers so far."""
    return Counter(row for worker in harness.workers for _, rows in worker.evaluations() for row in rows)


@pytest.mark.parametrize(
    ("kills", "lease", "halves"),
    [
        (1, 2.0, True),
        pytest.param(20, 3.0, False, marks=pytest.mark.faults),
        pytest.param(10, 3.0, True, marks=pytest.mark.faults),
        pytest.param(3, 10.0, True, marks=pytest.mark.faults),
    ],
)
def test_jobs_of_a_killed_worker_end_with_the_same_bytes(
    kills: int, lease: float, halves: bool, site: Site, report: Callable[..., None]
) -> None:
    """rq#2015: SIGKILL at a random step with a batch of five jobs; another worker continues from the resume points,
    with the same bytes. Also with two turns in flight, of half the images each, which take half as long."""
    harness, chance = site.harness, random.Random(kills)
    traits: dict[str, Any] = {"seconds": TURN_SECONDS, "lease": lease}
    if halves:
        traits |= {"seconds": TURN_SECONDS / 2, "min_pipelined_images": 4}
    harness.worker("fake", **traits)
    undisturbed = [harness.submit(**fields) for fields in JOBS]
    expected = [harness.sha256(job_id) for job_id in undisturbed]
    once = rows_made(harness)
    harness.workers[-1].signal(signal.SIGTERM)
    assert harness.workers[-1].wait() == 0
    late, again, repeated = [], [], []
    for _ in range(kills):
        before = rows_made(harness)
        victim = harness.worker("fake", **traits)
        jobs = [harness.submit(**fields) for fields in JOBS]
        for job_id in jobs:
            harness.until(lambda job_id=job_id: harness.job(job_id).status == "running", "all to run")  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 1.5))
        victim.kill()
        killed = time.time()
        heir = harness.worker("fake", **traits)
        lost = [job_id for job_id in jobs if not harness.job(job_id).terminal]
        assert len(lost) >= 4
        assert [harness.sha256(job_id) for job_id in jobs] == expected
        for job_id in jobs:
            check_events(harness.events(job_id))
            assert harness.job(job_id).attempt == (2 if job_id in lost else 1)
        again.append(heir.evaluations()[0][0] - killed)
        late.append(max(harness.job(job_id).finished_at or 0.0 for job_id in jobs) - killed)
        repeated.append(_seconds(victim, rows_made(harness) - before - once))
        heir.signal(signal.SIGTERM)
        assert heir.wait() == 0
    report(
        kills=kills,
        lease=lease,
        halves=halves,
        latest_resumed_seconds=round(max(again), 2),
        latest_done_seconds=round(max(late), 2),
        most_repeated_seconds=round(max(repeated), 2),
    )
    assert max(again) < 1.5 * lease + 1
    assert max(late) < 2 * lease + (5 if lease < 10 else 0), "what was left of the jobs takes up to 5 s"
    assert max(repeated) < 2.0


def _seconds(victim: WorkerProcess, repeated: Counter[float]) -> float:
    """Seconds between the first row of the victim that was evaluated again and its last turn."""
    turns = victim.evaluations()
    firsts = [moment for moment, rows in turns if any(row in repeated for row in rows)]
    return turns[-1][0] - firsts[0] + TURN_SECONDS if firsts else 0.0


@pytest.mark.faults
def test_a_job_that_kills_its_workers_fails_and_the_others_succeed(site: Site, report: Callable[..., None]) -> None:
    """Every row of class 2 below t = 700 ends its process; a supervisor restarts the worker each time."""
    harness = site.harness
    settings: dict[str, Any] = {"seconds": TURN_SECONDS, "lease": 1.0, "kill_class": 2, "kill_below": 700.0}
    before = [harness.submit(steps=100, sampler="ddpm", seed=k, label=k % 2) for k in range(3)]
    guilty = harness.submit(steps=50, label=2, n=2)
    after = [harness.submit(steps=20, seed=9), harness.submit(steps=200, sampler="ddpm", label=1)]
    deaths = 0
    worker = harness.worker("fake", **settings)
    while not all(harness.job(job_id).terminal for job_id in (*before, guilty, *after)):
        if worker.exit_code() is not None:
            deaths += 1
            assert deaths < 10
            worker = harness.worker("fake", **settings)
        time.sleep(0.02)
    record = harness.job(guilty)
    assert record.status == "failed"
    assert record.error == {
        "code": "worker_lost",
        "message": "3 worker(s) in a row were lost while they ran this job, without progress in between",
    }
    assert [harness.job(job_id).status for job_id in (*before, *after)] == ["succeeded"] * 5
    for job_id in (*before, guilty, *after):
        check_events(harness.events(job_id))
    harness.until(lambda: harness.forgotten(guilty), "RQ to forget the job")
    report(deaths=deaths, attempts_of_the_killer=record.attempt)
    assert deaths == 3, "as `max_attempts` says"


@pytest.mark.faults
def test_two_killers_are_distinguished_from_each_other_and_from_innocent_jobs(site: Site) -> None:
    """Both in one batch, and one that kills in its very first evaluation."""
    harness = site.harness
    settings: dict[str, Any] = {"seconds": TURN_SECONDS, "lease": 1.0, "kill_class": 2, "kill_below": 2000.0}
    innocent = [harness.submit(steps=60, seed=k, label=1) for k in range(2)]
    killers = [harness.submit(steps=50, label=2, seed=k) for k in range(2)]
    worker = harness.worker("fake", **settings)
    while not all(harness.job(job_id).terminal for job_id in (*innocent, *killers)):
        if worker.exit_code() is not None:
            worker = harness.worker("fake", **settings)
        time.sleep(0.02)
    assert [harness.job(job_id).status for job_id in innocent] == ["succeeded"] * 2
    assert [(harness.job(job_id).error or {}).get("code") for job_id in killers] == ["worker_lost"] * 2
    assert len(harness.workers) <= 7, "each takes three, and the last one does the rest"


@pytest.mark.faults
def test_a_job_that_loses_workers_but_makes_progress_succeeds(site: Site, report: Callable[..., None]) -> None:
    """Five kills of one worker after the other, each after a resume point was saved: the job caused none of them."""
    harness = site.harness
    job_id = harness.submit(steps=600, sampler="ddpm", label=1)
    steps = [0]
    for _ in range(5):
        worker = harness.worker("fake", seconds=TURN_SECONDS, lease=1.0)
        harness.until(
            lambda: harness.job(job_id).status == "running" and harness.job(job_id).step > steps[-1] + 60, "progress"
        )
        steps.append(harness.job(job_id).step)
        worker.kill()
    harness.worker("fake", lease=1.0)
    assert harness.finished(job_id).status == "succeeded"
    assert harness.job(job_id).attempt == 6
    assert steps == sorted(steps)
    check_events(harness.events(job_id))
    report(kills=5, steps_at_the_kills=steps[1:])


@pytest.mark.faults
def test_a_job_left_between_queue_and_lease_is_requeued_within_two_leases(
    site: Site, report: Callable[..., None]
) -> None:
    """rq#2236: it stands in RQ's intermediate queue, where RQ itself leaves it for a minute."""
    harness, lease = site.harness, 2.0
    harness.worker("other")
    harness.until(harness.store.workers.live, "a worker: the next one is there at once")
    job_id = harness.submit()
    queue = harness.rq_queue("fake")
    harness.client.lmove(queue.key, queue.intermediate_queue_key)
    moved = time.time()
    harness.worker("fake", lease=lease)
    assert harness.finished(job_id).status == "succeeded"
    after = (harness.job(job_id).finished_at or 0.0) - moved
    report(lease=lease, done_after_seconds=round(after, 2))
    assert after < 2 * lease
    assert harness.job(job_id).losses == 0


@pytest.mark.faults
@pytest.mark.parametrize("pause", [1.8, 3.0, 6.0])
def test_a_worker_paused_past_its_lease_changes_nothing_when_it_resumes(
    pause: float, site: Site, report: Callable[..., None]
) -> None:
    """rq#2424: SIGSTOP, another worker takes its jobs, SIGCONT: it writes no result, undoes no end and adds none."""
    harness = site.harness
    sleeper = harness.worker("fake", seconds=TURN_SECONDS, lease=1.0)
    jobs = [harness.submit(**fields) for fields in JOBS]
    harness.until(lambda: all(harness.running(job_id) for job_id in jobs), "all to run")
    sleeper.signal(signal.SIGSTOP)
    harness.worker("fake", seconds=TURN_SECONDS, lease=1.0)
    time.sleep(pause)
    harness.until(lambda: all(harness.job(job_id).attempt == 2 for job_id in jobs), "the others to be taken up")
    sleeper.signal(signal.SIGCONT)
    pictures = [harness.sha256(job_id) for job_id in jobs]
    time.sleep(0.5)
    again = [harness.submit(**fields) for fields in JOBS]
    assert pictures == [harness.sha256(job_id) for job_id in again] == [harness.sha256(job_id) for job_id in jobs]
    for job_id in jobs:
        stored = harness.events(job_id)
        check_events(stored)
        assert stored[-1]["attempt"] == 2
        for index, image in enumerate(harness.job(job_id).images):
            assert harness.store.image(job_id, index) is not None
            assert image.index == index
    assert sleeper.exit_code() is None
    report(jobs=len(jobs), violations=0)


@pytest.mark.faults
def test_a_job_longer_than_its_leases_stays_with_its_worker(site: Site) -> None:
    """rq#2424: two workers, seven leases; it never flips to failed, is begun once, and stays as it ended."""
    harness = site.harness
    for _ in range(2):
        harness.worker("fake", seconds=TURN_SECONDS, lease=1.0)
    job_id = harness.submit(steps=600, sampler="ddpm")
    assert harness.finished(job_id).status == "succeeded"
    record = harness.job(job_id)
    assert (record.attempt, record.losses) == (1, 0)
    assert (record.finished_at or 0.0) - (record.started_at or 0.0) > 6.0
    time.sleep(3.0)
    assert harness.job(job_id) == record
