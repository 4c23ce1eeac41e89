"""Model folders: ours load in diffusers, folders of diffusers load here, and a round trip changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, Defaults, read_card_file
from denoised.model.checkpoints.writing import save_model, scheduler_config
from denoised.model.diffusion.grids import Grid
from denoised.model.errors import PlanError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample

Folder = Callable[..., Path]
Weights = Callable[[UNetConfig], dict[str, Tensor]]


def noise() -> tuple[Tensor, Tensor]:
    """Two noisy 8×8 images and their timesteps."""
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])


def network(model: PixelModel, labels: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return model.unet(*noise(), labels)


def test_a_saved_model_loads_unchanged(tmp_path: Path, conditional: UNetConfig, weights: Weights) -> None:
    card = CardFile(labels=["boot", "bag", "coat"], default=Defaults(steps=7, guidance_scale=2.5), description="shoes")
    drawn = weights(conditional)
    save_model(tmp_path / "shoes", conditional, drawn, scheduler_config("squaredcos_cap_v2", "v_prediction"), card)
    model = load_model(tmp_path / "shoes", max_images=3, numerics="eager")
    assert model.unet.config == conditional
    assert all(torch.equal(value, drawn[key]) for key, value in model.unet.state_dict().items())
    assert model.unet.state_dict().keys() == drawn.keys()
    assert model.prediction_type == "v_prediction"
    assert model.schedule.alpha[998] ** 2 == pytest.approx(2.4288e-6, rel=3e-5)
    assert model.grid == Grid("trailing", 0, True, "fixed_small")
    assert model.clipping.limit == 1.0
    assert model.shape == (1, 8, 8)
    assert model.card.name == "shoes"
    assert model.card.labels == ["boot", "bag", "coat"]
    assert model.card.default.steps == 7
    assert (model.card.timesteps, model.card.max_images, model.card.numerics) == (1000, 3, "eager")
    assert read_card_file(tmp_path / "shoes") == card


def test_a_served_network_is_in_evaluation_mode(folder: Folder) -> None:
    model = load_model(folder())
    assert not model.unet.training
    assert not any(weight.requires_grad for weight in model.unet.parameters())


def test_loading_draws_nothing_from_the_global_generator(folder: Folder) -> None:
    """Sampling in the middle of a training run must not change the run, whose dropout uses that generator."""
    path = folder()
    before = torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_does_not_change_when_its_file_is_overwritten(folder: Folder) -> None:
    path = folder()
    model = load_model(path)
    before = network(model, torch.tensor([0, 3]))
    file = path / "unet/diffusion_pytorch_model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    assert torch.equal(network(model, torch.tensor([0, 3])), before)


def test_our_folder_loads_in_diffusers_and_gives_the_same_output(folder: Folder) -> None:
    path = folder()
    theirs = UNet2DModel.from_pretrained(path, subfolder="unet").eval()
    labels = torch.tensor([2, 3])
    with torch.inference_mode():
        expected = theirs(*noise(), class_labels=labels).sample
    torch.testing.assert_close(network(load_model(path), labels), expected, rtol=0, atol=1e-5)


def test_our_scheduler_file_means_the_same_to_diffusers(folder: Folder) -> None:
    path = folder(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler = DDIMScheduler.from_pretrained(path, subfolder="scheduler")
    scheduler.set_timesteps(5)
    model = load_model(path)
    assert scheduler.timesteps.tolist() == model.plan("ddim", 5, 0.0).t.tolist()
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), torch.from_numpy(model.schedule.alpha) ** 2, rtol=1e-4, atol=1e-7
    )
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.clip_sample is True
    assert scheduler.config.set_alpha_to_one is True


def test_our_unconditional_folder_loads_as_a_diffusers_pipeline(folder: Folder, unconditional: UNetConfig) -> None:
    path = folder(unconditional)
    pipeline = DDIMPipeline.from_pretrained(path)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.unet.config.block_out_channels == [8, 16]


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "grid", "limit"),
    [
        (DDPMPipeline, DDPMScheduler(variance_type="fixed_large"), Grid(variance_type="fixed_large"), 1.0),
        (DDPMPipeline, DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), Grid("trailing"), None),
        (DDIMPipeline, DDIMScheduler(set_alpha_to_one=False, steps_offset=1), Grid("leading", 1, False), 1.0),
        (DDIMPipeline, DDIMScheduler(clip_sample_range=2.5), Grid(), 2.5),
    ],
    ids=["ddpm, fixed_large", "ddpm, unclipped", "ddim, offset", "ddim, wider clipping"],
)
def test_a_pipeline_saved_by_diffusers_loads_here(
    tmp_path: Path,
    unconditional: UNetConfig,
    stir: Callable[..., None],
    pipeline: Any,
    scheduler: Any,
    grid: Grid,
    limit: float | None,
) -> None:
    theirs = UNet2DModel(**{**unconditional.to_dict(), "attention_head_dim": None, "downsample_padding": 0}).eval()
    stir(theirs)
    pipeline(theirs, scheduler).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    with torch.inference_mode():
        torch.testing.assert_close(network(model), theirs(*noise()).sample, rtol=0, atol=1e-5)
    assert model.grid == grid
    assert model.clipping.limit == limit
    assert model.prediction_type == "epsilon"
    assert model.card.labels == []


def test_half_precision_weights_are_served_in_float32(folder: Folder) -> None:
    path = folder()
    file = path / "unet/diffusion_pytorch_model.safetensors"
    halves = {key: value.half() for key, value in load_file(file).items()}
    save_file(halves, file)
    model = load_model(path)
    for key, value in model.unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[key].float())


def test_a_folder_without_labels_numbers_its_classes(folder: Folder) -> None:
    assert load_model(folder()).card.labels == ["0", "1", "2"]


def test_a_folder_without_a_card_has_a_class_for_every_embedding(folder: Folder) -> None:
    """A folder of diffusers says nothing of a null class, so none of its classes is taken for one."""
    path = folder()
    (path / CARD_FILE).unlink()
    model = load_model(path)
    assert model.card.labels == ["0", "1", "2", "3"]
    assert not model.card.unconditional
    with pytest.raises(PlanError, match="needs one"):
        model.encode([ConditioningRequest()])


def test_a_folder_that_names_every_class_has_no_null_class(folder: Folder) -> None:
    model = load_model(folder(labels=("a", "b", "c", "d")))
    assert model.card.labels == ["a", "b", "c", "d"]
    assert not model.card.unconditional
    assert model.encode([ConditioningRequest(label=3)])["label"].tolist() == [3]
    assert torch.isfinite(sample(model, [3, 0], steps=2)).all()
    for run in (lambda: model.encode([ConditioningRequest()]), lambda: sample(model, [0], steps=2, guidance_scale=2.0)):
        with pytest.raises(PlanError, match="label = null: boots was trained with labels alone, so it needs one"):
            run()
    assert load_model(folder(labels=("a", "b", "c"))).card.unconditional


def test_a_network_that_takes_classes_as_numbers_has_the_classes_of_its_card(
    folder: Folder, unconditional: UNetConfig
) -> None:
    """Class k is the number k; no number means "no label"."""
    path = folder(dataclasses.replace(unconditional, class_embed_type="timestep"), labels=("boot", "bag"))
    model = load_model(path)
    assert model.card.labels == ["boot", "bag"]
    assert not model.card.unconditional
    with pytest.raises(PlanError, match="needs one"):
        model.encode([ConditioningRequest()])
    theirs = UNet2DModel.from_pretrained(path, subfolder="unet").eval()
    numbers = model.encode([ConditioningRequest(label=1), ConditioningRequest(label=0)])["label"]
    assert numbers.tolist() == [1, 0]
    with torch.inference_mode():
        expected = theirs(*noise(), class_labels=numbers).sample
    torch.testing.assert_close(network(model, numbers), expected, rtol=0, atol=1e-5)


def test_a_model_can_be_served_under_another_name(folder: Folder) -> None:
    assert load_model(folder(), name="fashion").card.name == "fashion"


def test_old_scheduler_files_mean_the_defaults_of_diffusers(folder: Folder) -> None:
    """diffusers 0.42: epsilon, linear 1e-4 → 0.02, 1000 timesteps, leading, offset 0, clipped to ±1, end ᾱ = 1."""
    path = folder()
    (path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    model = load_model(path)
    assert model.grid == Grid("leading", 0, True, "fixed_small")
    assert model.prediction_type == "epsilon"
    assert model.clipping.limit == 1.0
    assert model.schedule.alpha[999] ** 2 == pytest.approx(4.035829765e-5, rel=1e-9)


def test_saving_again_leaves_no_trace_of_the_old_model(folder: Folder, conditional: UNetConfig) -> None:
    path = folder(labels=("a", "b", "c"))
    names = {file.relative_to(path) for file in path.rglob("*")}
    folder(labels=("d", "e", "f"))
    assert {file.relative_to(path) for file in path.rglob("*")} == names
    assert load_model(path).card.labels == ["d", "e", "f"]
    assert json.loads((path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
