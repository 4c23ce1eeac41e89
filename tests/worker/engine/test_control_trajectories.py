"""Requests with different ControlNets, or none, in the engine: one turn, and the same bytes as alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denoised.jobs.control import Control, control_picture
from denoised.jobs.errors import RecordError
from denoised.jobs.lora import Lora
from denoised.jobs.record import JobRecord
from denoised.jobs.request_limits import check_limits
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.backends.native.transformers.text_network import NativeTextUNet
from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.serving import control_library
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_for_serving
from denoised.worker.delivery.request_check import check_request
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.start_picture import InputPictures
from denoised.worker.engine.trajectory import trajectories
from tests.control_nets import control_image, save_control_net
from tests.lora_adapters import peft, targets_of, write_lora
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, UNET, save_pipeline
from tests.worker.engine.test_text_trajectories import digests, files

HEADS = {"attention_head_dim": 1}  # of 16 channels, which compiled kernels take
DIGEST = "sha256:" + "0" * 64


def control(name: str, **fields: Any) -> Control:
    return Control(name, DIGEST, **fields)


CHOICES: tuple[tuple[Control, ...], ...] = (
    (),
    (control("edges"),),
    (control("pose", scale=0.6),),
    (control("edges", scale=1.5, start=0.4), control("pose", end=0.5)),
    (control("shuffle"),),
    (control("edges", guess_mode=True), control("edges", scale=0.2)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipeline(folder / "tiny-sd", unet=HEADS)
    nets = folder / "nets"
    save_control_net(nets / "edges", seed=1, unet={**UNET, **HEADS})
    save_control_net(nets / "pose", seed=2, unet={**UNET, **HEADS}, controlnet_conditioning_channel_order="bgr")
    save_control_net(nets / "shuffle", seed=3, unet={**UNET, **HEADS}, global_pool_conditions=True)
    read = read_text_pipeline(folder / "tiny-sd")
    write_lora(folder / "loras/style.safetensors", targets_of({"unet": read.unet}, "attn"), peft, seed=2)
    return folder


@pytest.fixture(params=["compiled", "packed", "one by one"])
def model(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LatentModel:
    if request.param != "compiled":
        monkeypatch.setattr("denoised.model.backends.text_selection.fits", lambda unet, shape: False)
    if request.param == "one by one":
        for module in ("text_selection", "control_backend"):
            monkeypatch.setattr(f"denoised.model.backends.{module}.can_pack", lambda device: False)
    return load(folder)


def load(folder: Path) -> LatentModel:
    found = load_for_serving(folder / "tiny-sd", loras=folder / "loras", controls=folder / "nets")
    assert not found.control_problems
    assert isinstance(found.model, LatentModel)
    return found.model


def job(name: str, controls: tuple[Control, ...] = (), **fields: Any) -> JobRecord:
    given: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance_scale": 1.0, "seed": 3, "prompt": PROMPT}
    request = SamplingRequest(model="tiny-sd", label=None, label_name=None, controls=controls, **{**given, **fields})
    return JobRecord(id=name, owner="", request=request, created_at=0.0)


def pictures_of(record: JobRecord) -> InputPictures:
    """A control picture for each ControlNet of a job, other ones in each job."""
    count = len(record.request.controls)
    return {control_picture(k): np.asarray(control_image(10 * record.request.seed + k)) for k in range(count)}


def all_pictures(*records: JobRecord) -> Mapping[str, InputPictures]:
    return {record.id: pictures_of(record) for record in records}


def test_every_image_has_the_same_bytes_alone_and_in_any_mix_of_control_nets(model: LatentModel, folder: Path) -> None:
    jobs = [
        job(
            f"job-{k}",
            CHOICES[k % len(CHOICES)],
            seed=k,
            sampler=("ddim", "heun", "euler_a")[k % 3],
            stages=(1, 2, 1)[k % 3],
            guidance_scale=(1.0, 4.0)[k // len(CHOICES)],
            negative_prompt=NEGATIVE_PROMPT if k > len(CHOICES) else None,
            loras=(Lora("style", 0.8),) if k % 4 == 1 else (),
        )
        for k in range(2 * len(CHOICES))
    ]
    pictures = all_pictures(*jobs)
    alone: dict[str, str] = {}
    for each in jobs:
        alone |= digests(model, [each], 1, random.Random(0), pictures)
    assert len(set(alone.values())) == len(jobs)
    assert digests(model, jobs, 16, random.Random(1), pictures) == alone
    assert digests(model, jobs, 3, random.Random(2), pictures) == alone
    plain = load_for_serving(folder / "tiny-sd", loras=folder / "loras").model
    free = [each for each in jobs if not each.request.controls]
    assert free
    for each in free:
        assert digests(plain, [each], 1, random.Random(0)).items() <= alone.items()


def test_a_compiled_backend_stays_for_the_rows_without_control_nets(folder: Path) -> None:
    assert isinstance(load(folder).backend, NativeTextUNet)


def test_requests_with_other_control_nets_share_one_turn(folder: Path) -> None:
    model = load(folder)
    engine = Engine({"tiny-sd": model}, 16)
    for k, controls in enumerate(CHOICES):
        record = job(str(k), controls, guidance_scale=3.0)
        engine.batch.admit(trajectories(record, model, pictures=pictures_of(record)))
    turn = engine.step()
    assert (turn.rows, len(turn.advanced)) == (2 * len(CHOICES), len(CHOICES))


def test_a_job_that_another_worker_continues_has_the_same_bytes(folder: Path) -> None:
    model = load(folder)
    record = job("a", CHOICES[3], steps=4, sampler="euler_a", guidance_scale=4.0)
    pictures = pictures_of(record)
    whole = digests(model, [record], 4, random.Random(0), {"a": pictures})
    engine = Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model, pictures=pictures))
    engine.step()
    (item,) = engine.step().advanced
    data = to_bytes({0: ResumePoint(item.row, item.registers)})
    resumed, engine = dict[str, str](), Engine({"tiny-sd": model}, 4)
    engine.batch.admit(trajectories(record, model, from_bytes(data), pictures))
    while len(engine.batch):
        resumed |= files(engine.step(), {"a": record.request}, model)
    assert resumed == whole


def test_a_control_net_of_scale_0_changes_no_pixel(folder: Path) -> None:
    model = load(folder)
    records = [job("a", (control("edges", scale=0.0),)), job("a")]
    pictures = [trajectories(each, model, pictures=pictures_of(each))[0] for each in records]
    assert [each.conditioning.controls for each in pictures] == [(), ()]


def test_networks_in_memory_are_bounded_and_those_in_use_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_library, "MAX_LOADED", 1)
    model, loaded = load(folder), list[str]()
    read = control_library.load_control_net
    monkeypatch.setattr(control_library, "load_control_net", lambda of: (loaded.append(of.name), read(of))[1])
    records = [job(name, (control(name),)) for name in ("edges", "edges", "pose", "edges")]
    engine = Engine({"tiny-sd": model}, 8)
    for record in records:
        engine.batch.admit(trajectories(record, model, pictures=pictures_of(record)))
    assert loaded == ["edges", "pose", "edges"]
    while len(engine.batch):
        assert not engine.step().failed
    assert loaded == ["edges", "pose", "edges"], "a turn reads nothing"


def test_what_the_queue_must_not_contain_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    record = job("a", (control("missing"),))
    with pytest.raises(PlanError, match=r"'missing' is not offered \(offered: edges, pose, shuffle\)"):
        trajectories(record, model, pictures=pictures_of(record))
    with pytest.raises(RecordError, match="controls of the request names 'missing', which tiny-sd does not offer here"):
        check_request(record.request, model.card)
    with pytest.raises(RecordError, match="the ControlNet 'edges' has changed since the job was accepted"):
        check_request(job("a", (control("edges", digest="0"),)).request, model.card)
    for wrong, message in (
        ((control("edges", scale=5.0),), "controls.scale of the request is 5"),
        ((control("edges", end=2.0),), "controls.end of the request is 2"),
        ((Control("edges", "file"),), "controls.image of the request is 'file'"),
        ((control("edges"),) * 5, "controls of the request has 5 items"),
    ):
        with pytest.raises(RecordError, match=message):
            check_limits(job("a", wrong).request)
    changed = tmp_path / "nets"
    save_control_net(changed / "edges", unet={**UNET, **HEADS})
    changing = load_for_serving(folder / "tiny-sd", controls=changed).model
    save_control_net(changed / "edges", seed=9, unet={**UNET, **HEADS})
    edges = job("b", (control("edges"),))
    with pytest.raises(CheckpointError, match="edges: has changed since the worker started"):
        trajectories(edges, changing, pictures=pictures_of(edges))
