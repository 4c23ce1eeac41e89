"""One, two or three rows of an image in an evaluation: two guidances, one toward text and one toward an input image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.model.diffusion.guidance import guide, guide_twice
from denoised.model.diffusion.predictions import Estimate
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.worker.delivery.progress import AttemptProgress
from denoised.worker.delivery.request_check import check_request
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory
from tests.harness import LABELS, request

Trajectories = Callable[..., list[Trajectory]]
IMAGE_ALONE, NOTHING = len(LABELS) + 1, len(LABELS)  # what the network sees in the further rows
TWICE: dict[str, Any] = {"label": 1, "guidance_scale": 3.0, "image_guidance_scale": 1.5, "steps": 4}
ONCE: dict[str, Any] = {"label": 2, "guidance_scale": 3.0, "steps": 4}
PLAIN: dict[str, Any] = {"label": 3, "steps": 4}


@pytest.fixture
def model(fake_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that sees an input image: ε̂ rises by .25 with the condition's number."""
    model = fake_model(limit=None)

    def encode(requests: Sequence[ConditioningRequest]) -> Conditioning:
        without = [IMAGE_ALONE if each.has_image else NOTHING for each in requests]
        labels = [number if each.label is None else each.label for each, number in zip(requests, without, strict=True)]
        return Conditioning({"label": torch.tensor(labels)})

    monkeypatch.setattr(model, "encode", encode)
    return model


def run(model: Any, *members: Trajectory) -> tuple[list[torch.Tensor], list[int]]:
    """x_0 of each, and the rows of each turn."""
    engine = Engine({"fake": model}, 16)
    engine.batch.admit(members)
    results: dict[str, torch.Tensor] = {}
    rows = []
    while len(engine.batch):
        turn = engine.step()
        assert not turn.failed
        rows.append(turn.rows)
        results |= {item.trajectory.job: item.result for item in turn.advanced if item.result is not None}
    return [results[member.job] for member in members], rows


def random_estimate(seed: int) -> Estimate:
    x0, epsilon = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Estimate(x0, epsilon)


def test_two_guidances_are_the_papers_sum() -> None:
    cond, image, uncond = (random_estimate(seed) for seed in range(3))
    text_scale, image_scale = torch.tensor([7.5, 2.0, 1.0]), torch.tensor([1.5, 1.0, 1.0])
    out = guide_twice(cond, image, uncond, text_scale, image_scale)
    for name in ("x0", "epsilon"):
        c, i, u = (getattr(each, name) for each in (cond, image, uncond))
        s_t, s_i = text_scale[:, None, None, None], image_scale[:, None, None, None]
        torch.testing.assert_close(getattr(out, name), u + s_i * (i - u) + s_t * (c - i))
    torch.testing.assert_close(out.epsilon[2], cond.epsilon[2])  # both scales 1: the condition alone


def test_equal_scales_are_one_guidance_and_an_image_scale_of_one_leads_away_from_the_image_alone() -> None:
    cond, image, uncond = (random_estimate(seed) for seed in range(3))
    scale, one = torch.full((3,), 4.0), torch.ones(3)
    torch.testing.assert_close(guide_twice(cond, image, uncond, scale, scale).x0, guide(cond, uncond, scale).x0)
    torch.testing.assert_close(guide_twice(cond, image, uncond, scale, one).x0, guide(cond, image, scale).x0)


def test_the_engine_evaluates_three_rows_and_combines_them(model: Any, trajectories_of: Trajectories) -> None:
    (twice,) = trajectories_of(model, "twice", **TWICE)
    assert twice.total_evaluations == 12
    (result,), rows = run(model, twice)
    assert rows == [3] * 4
    assert model.calls == [[1, NOTHING, IMAGE_ALONE]] * 4
    # ε̂ is linear in the condition's number, so the sum equals one evaluation at the combined number.
    combined = NOTHING + 1.5 * (IMAGE_ALONE - NOTHING) + 3.0 * (1 - IMAGE_ALONE)
    (plain,) = trajectories_of(model, "plain", label=1, steps=4)
    plain.conditioning = Conditioning({"label": torch.tensor([combined])})
    (expected,), _ = run(model, plain)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("interval", [None, [0.3, 5.0]])
def test_images_of_one_two_and_three_rows_share_a_batch_with_the_same_bytes_as_alone(
    rescale: float, interval: list[float] | None, model: Any, trajectories_of: Trajectories
) -> None:
    guided = {"guidance_rescale": rescale, "guidance_interval": interval}
    asked = {"a": {**TWICE, **guided}, "b": ONCE, "c": PLAIN, "d": {**TWICE, "seed": 9}, "e": {**ONCE, **guided}}

    def make(name: str) -> Trajectory:
        (trajectory,) = trajectories_of(model, name, **asked[name])
        return trajectory

    for order in ("abcde", "dbeca"):
        together, rows = run(model, *map(make, order))
        if interval is None:
            assert rows == [3 + 2 + 1 + 3 + 2] * 4
        else:
            assert min(rows) < max(rows) <= 11, "outside the interval an image is one row"
        for name, result in zip(order, together, strict=True):
            (alone,), _ = run(model, make(name))
            assert torch.equal(result, alone), name


def test_every_count_of_evaluations_knows_three_rows(model: Any, trajectories_of: Trajectories) -> None:
    asked = request(n=2, **TWICE)
    assert (asked.rows_per_evaluation, asked.evaluations) == (3, 24)
    assert replace(asked, guidance_scale=1.0).rows_per_evaluation == 1
    assert replace(asked, image_guidance_scale=None).rows_per_evaluation == 2
    images = trajectories_of(model, "twice", n=2, **TWICE)
    assert sum(image.pending_evaluations for image in images) == 24
    progress, engine = AttemptProgress([0, 0]), Engine({"fake": model}, 16)
    progress.resume(JobRecord("twice", "", asked, 0.0), images)
    engine.batch.admit(images)
    assert engine.batch.pending_evaluations == 24
    turn = engine.step()
    progress.advance(turn.rows, turn.advanced)
    assert (progress.evaluations, engine.batch.pending_evaluations) == (6, 18)


def test_a_model_without_input_images_refuses_a_second_guidance_by_name(model: Any) -> None:
    with pytest.raises(RecordError, match=r"image_guidance_scale of the request is 1\.5, but fake takes no"):
        check_request(request(**TWICE), model.card)
    check_request(request(**TWICE), model.card.model_copy(update={"image_guidance": True}))
