"""Images that start from a picture: how much of the way they go, and which part of the picture is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoised.model.diffusion.samplers import SAMPLERS
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.trajectory import Trajectory
from tests.fake_model import SCHEDULE, FakeModel
from tests.harness import request as request_of

Make = Callable[..., list[Trajectory]]
DIGEST = "sha256:" + "0" * 64
STEPS = 8
GENERATOR = np.random.default_rng(3)
PICTURE = GENERATOR.integers(0, 256, (4, 4, 1), dtype=np.uint8)
MASK = np.zeros((4, 4, 1), dtype=np.uint8)
MASK[:, 2:] = 255  # the right half is made anew
IMAGE: dict[str, Any] = {"image": DIGEST, "pictures": {"image": PICTURE}}
INPAINTING: dict[str, Any] = {"image": DIGEST, "mask": DIGEST, "pictures": {"image": PICTURE, "mask": MASK}}


def x0() -> Tensor:
    return torch.from_numpy(PICTURE).permute(2, 0, 1).float() / 127.5 - 1


def run(model: FakeModel, images: Sequence[Trajectory]) -> dict[tuple[str, int], Tensor]:
    """x_0 of every image."""
    engine = Engine({"fake": model}, 16)
    engine.batch.admit([image for image in images if not image.finished])
    found = {(image.job, image.index): image.registers[0] for image in images if image.finished}
    while len(engine.batch):
        turn = engine.step()
        assert not turn.failed
        found |= {(i.trajectory.job, i.trajectory.index): i.result for i in turn.advanced if i.result is not None}
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_plain_generation_and_strength_0_the_picture(
    model: FakeModel, trajectories_of: Make, sampler: str
) -> None:
    plain = run(model, trajectories_of(model, "a", sampler=sampler, steps=STEPS))
    whole = run(model, trajectories_of(model, "a", sampler=sampler, steps=STEPS, strength=1.0, **IMAGE))
    assert torch.equal(whole["a", 0], plain["a", 0])
    none = run(model, trajectories_of(model, "a", sampler=sampler, steps=STEPS, strength=0.0, **IMAGE))
    assert np.array_equal(model.decode(none["a", 0][None])[0], PICTURE)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("strength", "steps"), [(0.01, 1), (0.5, 4), (0.99, 7)])
def test_a_run_has_the_last_steps_of_the_plan(
    model: FakeModel, trajectories_of: Make, sampler: str, strength: float, steps: int
) -> None:
    (whole,) = trajectories_of(model, "a", sampler=sampler, steps=STEPS)
    (image,) = trajectories_of(model, "b", sampler=sampler, steps=STEPS, strength=strength, **IMAGE)
    assert image.plan.steps == steps
    assert image.plan.t[-1] == whole.plan.t[-1]
    assert image.plan.t[0] in whole.plan.t
    request = {"sampler": sampler, "steps": STEPS, "strength": strength, "image": DIGEST}
    recipe = SAMPLERS[sampler]
    counted = request_of(**request, stages=recipe.stages, extra_evaluations=recipe.extra)
    assert counted.run_steps == steps
    assert counted.evaluations == image.plan.evaluations


def test_the_picture_gets_the_noise_of_the_seed_at_the_first_level(model: FakeModel, trajectories_of: Make) -> None:
    (image,) = trajectories_of(model, "a", sampler="ddim", steps=STEPS, strength=0.5, **IMAGE)
    t = int(image.plan.t[0])
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(7))
    expected = float(SCHEDULE.alpha[t]) * x0() + float(SCHEDULE.sigma[t]) * noise
    assert torch.allclose(image.registers[0], expected, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_what_the_mask_keeps_is_the_picture_at_the_end(
    model: FakeModel, trajectories_of: Make, sampler: str, strength: float
) -> None:
    images = trajectories_of(model, "a", sampler=sampler, steps=STEPS, n=2, strength=strength, **INPAINTING)
    for result in run(model, images).values():
        picture = model.decode(result[None])[0]
        assert np.array_equal(picture[:, :2], PICTURE[:, :2])
        if strength:
            assert not np.array_equal(picture[:, 2:], PICTURE[:, 2:])


def drawn(seed: int) -> dict[str, Any]:
    """A random request; the samplers take turns."""
    chance = random.Random(seed)
    start = chance.choice([{}, IMAGE, INPAINTING])
    fields = {"strength": chance.choice([0.0, 0.2, 0.6, 1.0])} if start else {}
    return {
        "sampler": sorted(SAMPLERS)[seed % len(SAMPLERS)],
        "steps": chance.randint(2, 9),
        "seed": chance.randrange(2**40),
        "n": chance.choice([1, 2]),
        "label": chance.choice([None, 1]),
        **start,
        **fields,
    }


def test_the_bits_are_the_same_alone_and_in_mixes(model: FakeModel, trajectories_of: Make) -> None:
    requests = {str(seed): drawn(seed) for seed in range(3 * len(SAMPLERS))}
    alone: dict[tuple[str, int], Tensor] = {}
    for job, fields in requests.items():
        alone |= run(model, trajectories_of(model, job, **fields))
    images = [image for job, fields in requests.items() for image in trajectories_of(model, job, **fields)]
    random.Random(1).shuffle(images)
    together = run(model, images)
    assert alone.keys() == together.keys()
    assert [key for key in alone if not torch.equal(alone[key], together[key])] == []


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", [IMAGE, INPAINTING], ids=["picture", "mask"])
def test_a_job_continues_from_each_row_with_the_same_bits(
    model: FakeModel, trajectories_of: Make, sampler: str, start: dict[str, Any]
) -> None:
    fields = {"sampler": sampler, "steps": 4, "eta": 1.0 if sampler in ("ddim", "tcd") else 0.0, "strength": 0.75}
    engine = Engine({"fake": model}, 4)
    (image,) = trajectories_of(model, "a", **fields, **start)
    engine.batch.admit([image])
    saved = []
    while len(engine.batch):
        (item,) = engine.step().advanced
        saved.append(to_bytes({0: ResumePoint(item.row, item.registers)}))
    for data in saved:
        (continued,) = trajectories_of(model, "a", **fields, **start)
        continued.resume(from_bytes(data)[0])
        assert torch.equal(run(model, [continued])["a", 0], image.registers[0])
