"""The noise levels that a request asks for, from its record to its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.request_limits import check_limits
from denoised.worker.engine.engine import Engine
from tests.harness import request

Trajectories = Callable[..., Any]


def ratios(trajectory: Any) -> Any:
    return trajectory.plan.sigma / trajectory.plan.alpha


def test_the_levels_of_a_request_are_those_of_its_plan(model: Any, trajectories_of: Trajectories) -> None:
    (own,) = trajectories_of(model, "a", sampler="euler", steps=3, sigmas=[40.0, 2.0, 0.1])
    assert ratios(own) == pytest.approx([40.0, 2.0, 0.1], rel=1e-12)
    (bounded,) = trajectories_of(model, "b", sampler="unipc", steps=3, spacing="geometric", sigma_min=1, sigma_max=4)
    assert ratios(bounded) == pytest.approx([4.0, 2.0, 1.0], rel=1e-12)
    (karras,) = trajectories_of(model, "c", sampler="euler", steps=5, karras=True)
    (named,) = trajectories_of(model, "d", sampler="euler", steps=5, spacing="karras")
    assert ratios(karras).tolist() == ratios(named).tolist()
    assert not np.array_equal(ratios(karras), ratios(trajectories_of(model, "e", sampler="euler", steps=5)[0]))


def test_images_of_different_levels_share_a_batch(model: Any, trajectories_of: Trajectories, turns_of: Any) -> None:
    """Each has the bits of a run alone."""
    asked: list[dict[str, Any]] = [
        {"sampler": "unipc_3", "steps": 4, "spacing": spacing} for spacing in ("geometric", "beta", "sgm_uniform")
    ]
    asked += [{"sampler": "ddim", "steps": 2, "sigmas": [30.0, 0.5]}, {"sampler": "lcm", "steps": 3}]

    def finished(*jobs: int) -> dict[str, torch.Tensor]:
        engine = Engine({"fake": model}, 8)
        for k in jobs:
            engine.batch.admit(trajectories_of(model, str(k), seed=k, **asked[k]))
        items = (item for turn in turns_of(engine) for item in turn.advanced if item.result is not None)
        return {item.trajectory.job: item.result for item in items}

    together = finished(*range(len(asked)))
    assert len(together) == len(asked)
    for k in range(len(asked)):
        assert torch.equal(together[str(k)], finished(k)[str(k)])


def test_a_record_keeps_its_levels() -> None:
    asked = request(sigmas=[3.0, 1], sigma_min=None, spacing=None)
    record = JobRecord("a", "", asked, 0.0)
    assert JobRecord.from_fields(record.to_fields()).request.sigmas == [3.0, 1]
    assert asked.parameters(0, "fake")["sigmas"] == [3.0, 1]
    assert "sigmas" not in request().parameters(0, "fake")


@pytest.mark.parametrize(
    "fields",
    [
        {"sigmas": ["1"]},
        {"sigmas": [True]},
        {"sigmas": [1.0] * 1002},
        {"sigmas": [-1.0]},
        {"sigmas": [1e10]},
        {"sigma_min": -1.0},
        {"sigma_max": 1e10},
        {"spacing": "random"},
    ],
)
def test_a_record_with_impossible_levels_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        check_limits(request(**fields))
