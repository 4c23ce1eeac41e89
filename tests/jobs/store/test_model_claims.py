"""Claims of workers on the names of their models: one digest for a name at a time."""

from __future__ import annotations

import time

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.models.model_claims import DONE, DRAIN
from denoised.jobs.store.store import Store


def test_a_name_stands_for_one_digest_at_a_time(store: Store) -> None:
    claims = store.claims
    assert claims.claim("one", {"shoes": "a1", "hats": "b2"}, ttl=60) is None
    assert claims.claim("two", {"shoes": "a1"}, ttl=60) is None
    other = claims.claim("three", {"bags": "e5", "shoes": "c3"}, ttl=60)
    assert other is not None
    assert (other.model, other.digest) == ("shoes", "a1")
    assert other.worker in ("one", "two")
    assert not store.client.exists(keys.claims("bags")), "all names or none"
    assert claims.shared(["shoes", "hats", "bags"]) == {"shoes"}
    claims.release("one", {"shoes": "a1", "hats": "b2"})
    assert claims.shared(["shoes", "hats"]) == frozenset()
    other = claims.claim("three", {"shoes": "c3"}, ttl=60)
    assert other is not None
    assert other.worker == "two"
    claims.release("two", {"shoes": "a1"})
    assert claims.claim("three", {"shoes": "c3"}, ttl=60) is None
    assert claims.claim("one", {"hats": "f6"}, ttl=60) is None, "released, too"


def test_a_claim_ends_with_its_lease_by_the_clock_of_redis(store: Store) -> None:
    assert store.claims.claim("killed", {"shoes": "a1"}, ttl=0.3) is None
    first = store.claims.claim("new", {"shoes": "c3"}, ttl=60)
    assert first is not None
    seconds, micros = store.client.time()  # type: ignore[misc]
    assert 0 < first.expires_at - (seconds + micros / 1e6) <= 0.3
    time.sleep(0.35)
    assert store.claims.claim("new", {"shoes": "c3"}, ttl=60) is None


def test_a_renewed_claim_ends_later(store: Store) -> None:
    ends = []
    for _ in range(2):
        assert store.claims.claim("one", {"shoes": "a1"}, ttl=60) is None
        other = store.claims.claim("two", {"shoes": "c3"}, ttl=60)
        assert other is not None
        ends.append(other.expires_at)
    assert ends[1] > ends[0]


def test_models_without_a_digest_share_a_name(store: Store) -> None:
    """Workers of a model that has none, such as a model of tests."""
    assert store.claims.claim("one", {"shoes": ""}, ttl=60) is None
    assert store.claims.claim("two", {"shoes": ""}, ttl=60) is None
    other = store.claims.claim("three", {"shoes": "c3"}, ttl=60)
    assert other is not None
    assert other.digest == ""


def switched(store: Store, worker: str, phase: str, digest: str = "b2") -> str:
    return store.claims.switch("shoes", worker, digest, phase, ttl=60)


def test_a_single_worker_switches_when_its_jobs_have_ended(store: Store) -> None:
    assert store.claims.claim("one", {"shoes": "a1"}, ttl=60) is None
    assert switched(store, "one", "ready") == DRAIN
    assert store.claims.claim("late", {"shoes": "b2"}, ttl=60) is not None, "the old weights are served until then"
    assert switched(store, "one", "drained") == DONE
    assert store.claims.claim("late", {"shoes": "b2"}, ttl=60) is None
    assert store.claims.claim("one", {"shoes": "b2"}, ttl=60) is None


def test_workers_switch_together_and_none_before_the_others_have_the_files(store: Store) -> None:
    for worker in ("one", "two"):
        assert store.claims.claim(worker, {"shoes": "a1"}, ttl=60) is None
    assert switched(store, "one", "ready") == "two"
    assert switched(store, "two", "ready", digest="c3") == "one", "other files than the first has"
    assert switched(store, "one", "ready") == "two"
    assert [switched(store, "two", "ready"), switched(store, "one", "ready")] == [DRAIN, DRAIN]
    assert switched(store, "one", "drained") == DRAIN
    assert store.claims.claim("three", {"shoes": "a1"}, ttl=60) is None, "a worker that starts with the old files"
    assert switched(store, "one", "drained") == "three"
    store.claims.release("three", {"shoes": "a1"})
    assert [switched(store, "two", "drained"), switched(store, "one", "drained")] == [DONE, DONE]
    assert {member.decode() for member in store.client.zrange(keys.claims("shoes"), 0, -1)} == {"b2 one", "b2 two"}


def test_a_worker_that_was_killed_holds_nobody_up(store: Store) -> None:
    assert store.claims.claim("killed", {"shoes": "a1"}, ttl=0.3) is None
    assert store.claims.claim("one", {"shoes": "a1"}, ttl=60) is None
    assert switched(store, "one", "ready") == "killed"
    time.sleep(0.35)
    assert [switched(store, "one", "ready"), switched(store, "one", "drained")] == [DRAIN, DONE]


def test_a_switch_renews_the_claim_on_the_old_digest(store: Store) -> None:
    assert store.claims.claim("one", {"shoes": "a1"}, ttl=0.3) is None
    assert store.claims.claim("two", {"shoes": "a1"}, ttl=60) is None
    assert switched(store, "one", "ready") == "two"
    time.sleep(0.35)
    other = store.claims.claim("three", {"shoes": "c3"}, ttl=60)
    assert other is not None
    assert store.client.zscore(keys.claims("shoes"), "a1 one") is not None
