"""The first noise of two seeds, mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.serving.sampling import mix_noise
from denoised.worker.engine.engine import Engine
from tests.fake_model import FakeModel

Make = Callable[..., Any]


def result(model: FakeModel, make: Make, index: int = 0, **fields: Any) -> Tensor:
    engine = Engine({"fake": model}, 8)
    images = make(model, "a", **fields)
    engine.batch.admit(images)
    while len(engine.batch):
        engine.step()
    found: Tensor = images[index].registers[0]
    return found


def test_a_mixture_of_independent_noise_is_unit_noise() -> None:
    one, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    for mix in (0.0, 0.25, 0.5, 0.9, 1.0):
        assert mix_noise(one, other, mix).var().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(mix_noise(one, other, 0.0), one)
    assert torch.equal(mix_noise(one, other, 1.0), other)
    half = mix_noise(one, other, 0.5)
    assert torch.allclose(half, (one + other) / 2**0.5, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_the_ends_are_the_pictures_of_the_two_seeds(model: FakeModel, trajectories_of: Make, sampler: str) -> None:
    first, second = (result(model, trajectories_of, sampler=sampler, seed=seed) for seed in (3, 40))
    assert torch.equal(result(model, trajectories_of, sampler=sampler, seed=3, seed_to=40, mix=0.0), first)
    assert torch.equal(result(model, trajectories_of, sampler=sampler, seed=3, seed_to=40, mix=1.0), second)
    between = result(model, trajectories_of, sampler=sampler, seed=3, seed_to=40, mix=0.5)
    assert not torch.equal(between, first)
    assert not torch.equal(between, second)


def test_image_k_is_the_image_that_its_own_seed_makes_alone(model: FakeModel, trajectories_of: Make) -> None:
    fields = {"sampler": "euler_a", "seed_to": 40, "mix": 0.3}
    third = result(model, trajectories_of, index=2, n=3, seed=5, **fields)
    assert torch.equal(third, result(model, trajectories_of, seed=7, **fields))


def test_later_noise_is_that_of_the_image_s_own_seed(model: FakeModel, trajectories_of: Make) -> None:
    mixed = trajectories_of(model, "a", seed=3, seed_to=40, mix=1.0, sampler="ddpm")[0]
    plain = trajectories_of(model, "b", seed=3, sampler="ddpm")[0]
    assert torch.equal(mixed.draw(), plain.draw())
