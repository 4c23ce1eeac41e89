"""What is kept of a model for the time when no worker serves it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.models.kept_models import kept_models
from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import WorkerReport


@pytest.fixture
def store(client: redis.Redis) -> Store:
    return Store(client)


def report(*models: str, **fields: Any) -> WorkerReport:
    paces = {model: [(1.0, 0.5), (4.0, 1.0)] for model in models}
    batches = {model: [8, 2, 64] for model in models}
    given = {"paces": paces, "batches": batches, "counters": {"turns": 9}, **fields}
    return WorkerReport("worker-1", [{"name": model} for model in models], 16, 5, 700, 12.0, **given)


def test_each_model_is_kept_with_its_own_speed_and_without_the_load(store: Store) -> None:
    store.workers.kept.keep(kept_models(report("shoes", "hats")))
    kept = store.workers.kept.read(["hats", "shoes", "bags"])
    assert list(kept) == ["shoes", "hats"], "in the order of the worker, in which the first is the default"
    own = kept["hats"].report
    assert own.models == [{"name": "hats"}]
    assert (own.trajectories, own.pending_evaluations, own.counters) == (0, 0, {})
    assert own.batch_of("hats") == (8, 2, 64)
    assert own.paces == {"hats": [[1.0, 0.5], [4.0, 1.0]]}


def test_the_last_report_of_a_model_counts(store: Store) -> None:
    store.workers.kept.keep(kept_models(report("shoes")))
    store.workers.kept.keep(kept_models(report("shoes", paces={"shoes": [(1.0, 0.25)]})))
    assert store.workers.kept.read(["shoes"])["shoes"].report.paces == {"shoes": [[1.0, 0.25]]}


def test_a_model_that_is_forgotten_is_not_kept(store: Store) -> None:
    store.workers.kept.keep(kept_models(report("shoes", "hats")))
    store.workers.kept.forget(["shoes", "bags"])
    assert list(store.workers.kept.read(["hats", "shoes"])) == ["hats"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"place": 0}',
        b'{"place": "first", "report": null}',
        json.dumps({"place": 0, "report": json.loads(report("bags").to_json())}).encode(),
        json.dumps({"place": 0, "report": {**json.loads(report("shoes").to_json()), "requires": ["later"]}}).encode(),
    ],
)
def test_what_cannot_be_read_is_skipped(store: Store, value: bytes) -> None:
    store.workers.kept.keep(kept_models(report("shoes", "hats")))
    store.client.hset(keys.KEPT_MODELS, "shoes", value)
    assert list(store.workers.kept.read(["shoes", "hats"])) == ["hats"]


def test_a_key_of_another_type_keeps_nothing_until_a_worker_replaces_it(store: Store) -> None:
    store.client.set(keys.KEPT_MODELS, "a string")
    assert store.workers.kept.read(["shoes"]) == {}
    store.workers.kept.keep(kept_models(report("shoes")))
    assert list(store.workers.kept.read(["shoes"])) == ["shoes"]
