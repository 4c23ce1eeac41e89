"""Requests with different adapters, or none, in the engine: one evaluation, and the same bytes as alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from denoised.jobs.lora import Lora
from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from denoised.model.serving.loading import load_for_serving
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.trajectory import trajectories
from tests.lora_adapters import kohya, peft, targets_of, write_lora
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, save_pipeline
from tests.worker.engine.test_text_trajectories import digests, files

CHOICES: tuple[tuple[Lora, ...], ...] = (
    (),
    (Lora("text", 1.0),),
    (Lora("image", 0.8),),
    (Lora("both", 1.0),),
    (Lora("both", -0.5), Lora("image", 1.5)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipeline(folder / "tiny-sd")
    read = read_text_pipeline(folder / "tiny-sd")
    networks = {"unet": read.unet, "text_encoder": read.text_encoders[0]}
    loras = folder / "loras"
    write_lora(loras / "text.safetensors", targets_of({"text_encoder": read.text_encoders[0]}, "attn"), kohya, seed=1)
    write_lora(loras / "image.safetensors", targets_of({"unet": read.unet}, "attn", "conv1"), peft, seed=2)
    write_lora(loras / "both.safetensors", targets_of(networks, "attn", "mlp", "ff"), kohya, seed=3)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_for_serving(folder / "tiny-sd", loras=folder / "loras").model


def job(name: str, loras: tuple[Lora, ...] = (), **fields: Any) -> JobRecord:
    given: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance_scale": 1.0, "seed": 3, "prompt": PROMPT}
    request = SamplingRequest(model="tiny-sd", label=None, label_name=None, loras=loras, **{**given, **fields})
    return JobRecord(id=name, owner="", request=request, created_at=0.0)


def test_every_image_has_the_same_bytes_alone_and_in_any_mix_of_adapters(model: ServedModel, folder: Path) -> None:
    jobs = [
        job(
            f"job-{k}",
            CHOICES[k % len(CHOICES)],
            seed=k,
            sampler=("ddim", "euler_a", "dpmpp_2m")[k % 3],
            guidance_scale=(1.0, 4.0)[k % 2],
            negative_prompt=NEGATIVE_PROMPT if k % 4 == 3 else None,
        )
        for k in range(10)
    ]
    alone: dict[str, str] = {}
    for each in jobs:
        alone |= digests(model, [each], 1, random.Random(0))
    assert digests(model, jobs, 16, random.Random(1)) == alone
    assert digests(model, jobs, 3, random.Random(2)) == alone
    plain = load_for_serving(folder / "tiny-sd").model
    for each in jobs:
        without = digests(plain, [job(each.id, (), **_fields(each))], 1, random.Random(0))
        assert (without == {key: alone[key] for key in without}) == (not each.request.loras)


def _fields(record: JobRecord) -> dict[str, Any]:
    return {name: getattr(record.request, name) for name in ("seed", "sampler", "guidance_scale", "negative_prompt")}


def test_requests_with_other_adapters_share_one_evaluation(model: ServedModel) -> None:
    engine = Engine({"tiny-sd": model}, 16)
    for k, loras in enumerate(CHOICES):
        engine.batch.admit(trajectories(job(str(k), loras, guidance_scale=3.0), model))
    turn = engine.step()
    assert (turn.rows, len(turn.advanced)) == (2 * len(CHOICES), len(CHOICES))


def test_a_job_that_another_worker_continues_has_the_same_bytes(model: ServedModel) -> None:
    record = job("a", CHOICES[-1], steps=4, sampler="euler_a", guidance_scale=4.0)
    whole = digests(model, [record], 4, random.Random(0))
    engine = Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model))
    engine.step()
    (item,) = engine.step().advanced
    data = to_bytes({0: ResumePoint(item.row, item.registers)})
    resumed, engine = dict[str, str](), Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model, from_bytes(data)))
    while len(engine.batch):
        resumed |= files(engine.step(), {"a": record.request}, model)
    assert resumed == whole
