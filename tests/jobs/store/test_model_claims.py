"""Claims of workers on the names of their models: one digest for a name at a time."""

from __future__ import annotations

import time

from denoised.jobs.store import redis_keys as keys
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
