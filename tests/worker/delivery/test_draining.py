"""Which jobs a stopping worker still finishes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from denoised.worker.delivery.draining import jobs_to_requeue


def test_the_jobs_nearest_their_end_are_finished() -> None:
    pending = {"long": 500, "short": 20, "middle": 60}
    assert jobs_to_requeue(pending, 80) == ["long"]
    assert jobs_to_requeue(pending, 79) == ["middle", "long"]
    assert jobs_to_requeue(pending, 0) == ["short", "middle", "long"]
    assert jobs_to_requeue({}, 10) == []


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), max_size=8), st.floats(0, 3000))
def test_the_finished_jobs_fit_and_no_shorter_one_is_requeued(pending: dict[str, int], evaluations: float) -> None:
    requeued = jobs_to_requeue(Counter(pending), evaluations)
    kept = [pending[job] for job in pending if job not in requeued]
    assert sum(kept) <= evaluations
    assert all(pending[job] >= max(kept, default=0) for job in requeued)
