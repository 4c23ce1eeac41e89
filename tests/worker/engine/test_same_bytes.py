"""A picture's bytes do not depend on what else is running: the bundled model, every sampler, random mixes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
import torch

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.serving.pixel_model import PixelModel
from denoised.worker.delivery.pictures.encoding import encode
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories
from denoised.worker.model_loading import load_models

REQUESTS = 200


@pytest.fixture(scope="module", params=[("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")], ids="-".join)
def model(request: pytest.FixtureRequest) -> PixelModel:
    device, precision = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return load_models([], device=device, max_images=16, precision=precision)["fashion-mnist"]


def drawn(model: PixelModel, seed: int) -> JobRecord:
    """A random request; the samplers take turns."""
    chance = random.Random(seed)
    samplers, tuned = sorted(model.card.samplers), model.card.grid.consistency
    sampler = samplers[seed % len(samplers)]
    label = chance.choice([None, *range(10)] if model.card.unconditional else range(10))
    request = SamplingRequest(
        model=model.card.name,
        label=label,
        label_name=None,
        n=chance.choice([1, 1, 1, 2, 3]),
        seed=chance.randrange(2**40),
        sampler=sampler,
        steps=chance.randint(1, len(tuned)) if tuned else chance.randint(3, 14),
        eta=chance.random() if sampler in model.card.eta_samplers else 0.0,
        guidance_scale=chance.uniform(1.1, 4.0) if label is not None and not tuned and chance.random() < 0.4 else 1.0,
        format="png",
    )
    return JobRecord(id=f"job-{seed}", owner="", request=request, created_at=0.0)


def digests(model: PixelModel, jobs: Sequence[JobRecord], max_batch: int, chance: random.Random) -> dict[str, str]:
    """The SHA-256 of every image's PNG, with the jobs admitted one by one at random turns."""
    engine = Engine({model.card.name: model}, max_batch)
    requests = {job.id: job.request for job in jobs}
    waiting, found = list(jobs), {}
    while waiting or len(engine.batch):
        while waiting and (not len(engine.batch) or chance.random() < 0.3):
            engine.batch.admit(trajectories(waiting.pop(), model))
        turn = engine.step()
        assert not turn.failed, turn.failed
        for item in turn.advanced:
            if item.result is not None:
                job, index = item.trajectory.job, item.trajectory.index
                parameters = requests[job].parameters(index, model.card.numerics)
                png = encode(model.decode(item.result[None])[0], "png", parameters)
                found[f"{job}/{index}"] = hashlib.sha256(png).hexdigest()
    return found


@pytest.mark.slow
def test_two_hundred_requests_give_the_same_bytes_alone_and_in_random_mixes(model: PixelModel) -> None:
    jobs = [drawn(model, seed) for seed in range(REQUESTS)]
    alone: dict[str, str] = {}
    for job in jobs:
        alone |= digests(model, [job], 1 + job.request.n, random.Random(0))
    assert len(alone) == sum(job.request.n for job in jobs)
    for max_batch in (1, 5, 16, 37):
        chance = random.Random(max_batch)
        chance.shuffle(jobs)
        assert digests(model, jobs, max_batch, chance) == alone, max_batch


def test_requests_give_the_same_bytes_alone_and_in_a_random_mix(model: PixelModel) -> None:
    jobs = [drawn(model, seed) for seed in range(len(SAMPLERS))]
    alone: dict[str, str] = {}
    for job in jobs:
        alone |= digests(model, [job], 1 + job.request.n, random.Random(0))
    assert digests(model, jobs, 16, random.Random(1)) == alone
