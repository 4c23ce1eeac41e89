"""What is still finished when a worker is told to stop."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from denoised.worker.delivery.draining import to_give_back


def test_the_jobs_nearest_their_end_are_finished() -> None:
    pending = {"long": 500, "short": 20, "middle": 60}
    assert to_give_back(pending, 80) == ["long"]
    assert to_give_back(pending, 79) == ["middle", "long"]
    assert to_give_back(pending, 0) == ["short", "middle", "long"]
    assert to_give_back({}, 10) == []


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), max_size=8), st.floats(0, 3000))
def test_what_is_finished_fits_and_nothing_shorter_is_given_back(pending: dict[str, int], evaluations: float) -> None:
    given_back = to_give_back(Counter(pending), evaluations)
    kept = [pending[job] for job in pending if job not in given_back]
    assert sum(kept) <= evaluations
    assert all(pending[job] >= max(kept, default=0) for job in given_back)
