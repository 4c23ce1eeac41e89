"""Text models in the engine: mixes of prompts, sizes, samplers and guidance, and jobs that another worker continues."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.loading import load_for_serving
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.begun_jobs import resume_limit
from denoised.worker.delivery.pictures.encoding import encode
from denoised.worker.delivery.pictures.outputs import decode_finished, frame_events
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.start_picture import InputPictures
from denoised.worker.engine.trajectory import trajectories
from denoised.worker.engine.turn import Turn
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, build_xl_pipeline, save_pipeline

NO_INPUTS: Mapping[str, InputPictures] = {}

SAMPLERS = ("ddim", "euler", "dpmpp_2m", "plms", "euler_a")
PROMPTS = (None, PROMPT, "a (fox:1.3)", ", ".join([PROMPT] * 20))  # the last one has several sequences of tokens
SIZES = ((None, None), (24, None), (16, 32))


# A model of each kind: one text encoder, two with pooled text and size ids, and guidance as an input.
KINDS: dict[str, dict[str, Any]] = {
    "sd": {},
    "xl": {"build": build_xl_pipeline},
    "lcm": {"unet": {"time_cond_proj_dim": 8}},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-sd"
    save_pipeline(folder, **KINDS[request.param])
    return load_for_serving(folder).model


def job(name: str, model: ServedModel, **fields: Any) -> JobRecord:
    given: dict[str, Any] = {"sampler": "ddim", "steps": 4, "guidance_scale": 1.0, "seed": 3, "prompt": PROMPT}
    given["guidance_embedded"] = model.card.guidance_embedded
    request = SamplingRequest(model="tiny-sd", label=None, label_name=None, **{**given, **fields})
    return JobRecord(id=name, owner="", request=request, created_at=0.0)


def drawn(seed: int, model: ServedModel) -> JobRecord:
    """A random request."""
    chance = random.Random(seed)
    width, height = chance.choice(SIZES)
    return job(
        f"job-{seed}",
        model,
        n=chance.choice([1, 1, 2]),
        seed=chance.randrange(2**40),
        sampler=SAMPLERS[seed % len(SAMPLERS)],
        steps=chance.randint(2, 6),
        guidance_scale=chance.choice([1.0, 3.0, 7.5]),
        prompt=chance.choice(PROMPTS),
        negative_prompt=chance.choice([None, NEGATIVE_PROMPT]),
        clip_skip=chance.choice([0, 0, 1]),
        emphasis=chance.choice([False, True]),
        width=width,
        height=height,
    )


def files(turn: Turn, requests: dict[str, SamplingRequest], model: ServedModel) -> dict[str, str]:
    """The SHA-256 of the PNG of each image that finished in a turn."""
    found = {}
    for name in {item.trajectory.job for item in turn.advanced}:
        own = [item for item in turn.advanced if item.trajectory.job == name]
        for index, pixels in decode_finished(own, model).items():
            data = encode(pixels, "png", requests[name].parameters(index, "fake"))
            found[f"{name}/{index}"] = hashlib.sha256(data).hexdigest()
    return found


def digests(
    model: ServedModel,
    jobs: Sequence[JobRecord],
    max_batch: int,
    chance: random.Random,
    pictures: Mapping[str, InputPictures] = NO_INPUTS,
) -> dict[str, str]:
    """The SHA-256 of every image's PNG, with the jobs admitted one by one at random turns.

    pictures: those of each job by its id.
    """
    engine = Engine({"tiny-sd": model}, max_batch)
    requests, waiting, found = {each.id: each.request for each in jobs}, list(jobs), dict[str, str]()
    while waiting or len(engine.batch):
        while waiting and (not len(engine.batch) or chance.random() < 0.3):
            record = waiting.pop()
            engine.batch.admit(trajectories(record, model, pictures=pictures.get(record.id, {})))
        turn = engine.step()
        assert not turn.failed
        assert not turn.halved
        found |= files(turn, requests, model)
    return found


def test_every_image_has_the_same_bytes_alone_and_in_any_mix(model: ServedModel) -> None:
    jobs = [drawn(seed, model) for seed in range(15)]
    alone: dict[str, str] = {}
    for each in jobs:
        alone |= digests(model, [each], 1, random.Random(0))
    assert len(alone) == sum(each.request.n for each in jobs)
    for max_batch in (3, 16):
        assert digests(model, jobs, max_batch, random.Random(max_batch)) == alone


def test_images_of_other_sizes_or_numbers_of_token_sequences_go_into_other_batches(model: ServedModel) -> None:
    engine = Engine({"tiny-sd": model}, 16)
    for name, fields in {"a": {}, "b": {"prompt": "a fox", "guidance_scale": 5.0}, "c": {"sampler": "plms"}}.items():
        engine.batch.admit(trajectories(job(name, model, **fields), model))
    engine.batch.admit(trajectories(job("wide", model, width=24), model))
    engine.batch.admit(trajectories(job("long", model, prompt=PROMPTS[-1]), model))
    turns = [{item.trajectory.job for item in engine.step().advanced} for _ in range(3)]
    assert sorted(turns, key=len, reverse=True)[0] == {"a", "b", "c"}
    assert {frozenset(turn) for turn in turns} == {frozenset("abc"), frozenset({"wide"}), frozenset({"long"})}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_job_that_another_worker_continues_has_the_same_bytes(sampler: str, model: ServedModel) -> None:
    """The resume point holds latents; the prompt is encoded again."""
    record = job(
        "a", model, sampler=sampler, steps=5, guidance_scale=4.0, negative_prompt=NEGATIVE_PROMPT, width=24, n=2
    )
    requests = {"a": record.request}
    whole, points = dict[str, str](), list[bytes]()
    engine = Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model))
    while len(engine.batch):
        turn = engine.step()
        whole |= files(turn, requests, model)
        if all(item.result is None for item in turn.advanced):
            saved = {item.trajectory.index: ResumePoint(item.row, item.registers) for item in turn.advanced}
            points.append(to_bytes(saved))
    assert len(whole) == 2
    for data in points:
        resumed, engine = dict[str, str](), Engine({"tiny-sd": model}, 4)
        engine.batch.admit(trajectories(record, model, from_bytes(data)))
        while len(engine.batch):
            resumed |= files(engine.step(), requests, model)
        assert resumed == whole


def test_a_resume_point_holds_latents_and_the_record_the_prompt_but_neither_holds_encoded_text(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = job("a", model, prompt=PROMPTS[-1], guidance_scale=4.0, negative_prompt=NEGATIVE_PROMPT)
    engine = Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model))
    (item,) = engine.step().advanced
    data = to_bytes({0: ResumePoint(item.row, item.registers)})
    registers = 4 * item.registers.numel()
    assert registers <= len(data) < registers + 1024
    assert PROMPT.encode() not in data
    text = item.trajectory.conditioning["context"]
    assert 4 * text.numel() > 2 * len(data)
    stored = record.to_fields()
    assert PROMPT in stored["request"]
    assert sum(len(str(value)) for value in stored.values()) < 4096
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda requests: encoded.append(len(requests)) or encode(requests))
    (resumed,) = trajectories(record, model, from_bytes(data))
    assert encoded == [2 if record.request.guided else 1]  # once for the job, with its negative prompt
    assert torch.equal(resumed.conditioning["context"], text)


def test_the_largest_job_of_a_model_has_a_resume_point_within_the_limit(model: ServedModel) -> None:
    card = model.card
    record = job("a", model, n=card.max_images, sampler="plms", width=2 * card.width, height=2 * card.height)
    points = {each.index: ResumePoint(each.row, each.registers) for each in trajectories(record, model)}
    assert len(to_bytes(points)) <= resume_limit(model)


def test_frames_are_small_previews(model: ServedModel) -> None:
    record = job("a", model, steps=2, preview_every=1, preview="all")
    engine = Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model))
    (item,) = engine.step().advanced
    frames = frame_events(item, record.request, model)
    assert [frame["kind"] for frame in frames] == ["x0", "xt", "eps"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(frame["data"]))) for frame in frames]
    assert [(picture.size, picture.mode) for picture in pictures] == [((8, 8), "RGB")] * 3
