"""Same seed, same picture: a pipeline that diffusers saved, sampled there and here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UNet2DModel,
)
from torch import Tensor

from denoised.model.checkpoints.card_file import CardFile
from denoised.model.checkpoints.writing import save_model
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample

# diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEEDS = (5, 6)
STEPS = 10
NETWORK: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
# A network that was not trained predicts noise so badly that under the usual β most pixels end black or white.
GENTLE: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.002}
V: dict[str, Any] = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
OWN_BETAS = [k * 4e-4 for k in range(1, 51)]
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": partial(DDIMScheduler, **GENTLE),
    "ddim, usual β": DDIMScheduler,
    "ddim, v, cosine, trailing": partial(DDIMScheduler, **V, timestep_spacing="trailing"),
    "ddim, ends at timestep 0": partial(DDIMScheduler, **GENTLE, set_alpha_to_one=False, steps_offset=1),
    "ddpm": partial(DDPMScheduler, **GENTLE),
    "ddpm, usual β, fixed_large": partial(DDPMScheduler, variance_type="fixed_large"),
    "ddpm, x_0, not clipped": partial(DDPMScheduler, **GENTLE, prediction_type="sample", clip_sample=False),
    "ddpm, β of its own": partial(
        DDPMScheduler, num_train_timesteps=50, trained_betas=[k * 4e-4 for k in range(1, 51)]
    ),
    "euler": partial(EulerDiscreteScheduler, **GENTLE),
    "euler, v": partial(EulerDiscreteScheduler, prediction_type="v_prediction"),
    "euler, leading": partial(EulerDiscreteScheduler, **GENTLE, timestep_spacing="leading", steps_offset=1),
    "euler, Karras": partial(EulerDiscreteScheduler, **GENTLE, use_karras_sigmas=True),
    "euler_a": partial(EulerAncestralDiscreteScheduler, **GENTLE),
    "heun": partial(HeunDiscreteScheduler, **GENTLE),
    "heun, its own β, v": partial(HeunDiscreteScheduler, prediction_type="v_prediction"),
    "heun, clipped, Karras": partial(HeunDiscreteScheduler, **GENTLE, clip_sample=True, use_karras_sigmas=True),
    "dpmpp_2m": partial(DPMSolverMultistepScheduler, **GENTLE),
    "dpmpp_2m, v": partial(DPMSolverMultistepScheduler, prediction_type="v_prediction", timestep_spacing="trailing"),
    "lcm": partial(LCMScheduler, beta_start=1e-4, beta_end=5e-4),
    "lcm, clipped, v": partial(LCMScheduler, prediction_type="v_prediction", clip_sample=True, timestep_scaling=5.0),
    "tcd": partial(TCDScheduler, **GENTLE, beta_schedule="linear", original_inference_steps=20),
    "dpmpp_2m_sde": partial(DPMSolverMultistepScheduler, **GENTLE, algorithm_type="sde-dpmsolver++"),
}
Bytes = npt.NDArray[np.uint8]


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def as_bytes(x: Tensor) -> Bytes:
    """The way of diffusers' `VaeImageProcessor` and pipelines from [−1, 1] to uint8."""
    return np.asarray((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


def by_pipeline(unet: UNet2DModel, scheduler: Any) -> Bytes:
    kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    pipeline = kind(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(batch_size=len(SEEDS), generator=generators(), num_inference_steps=STEPS, output_type="np")
    return np.asarray((made.images * 255).round().astype(np.uint8))


@torch.inference_mode()
def by_loop(unet: UNet2DModel, scheduler: Any) -> Bytes:
    """The loop of diffusers' documents for schedulers that have no pipeline of their own."""
    own = generators()
    scheduler.set_timesteps(STEPS)
    noise = torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in own])
    x = noise * scheduler.init_noise_sigma
    stochastic = EulerAncestralDiscreteScheduler | DPMSolverMultistepScheduler | LCMScheduler
    draws = isinstance(scheduler, stochastic)
    more = {"eta": 0.0} if isinstance(scheduler, TCDScheduler) else {}
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x, **({"generator": own} if draws else {}), **more).prev_sample
    return as_bytes(x)


def by_diffusers(unet: UNet2DModel, scheduler: Any) -> Bytes:
    return (by_pipeline if isinstance(scheduler, DDIMScheduler | DDPMScheduler) else by_loop)(unet, scheduler)


def by_us(folder: Path) -> Bytes:
    model = load_model(folder)
    return as_bytes(sample(model, [None] * len(SEEDS), seed=SEEDS[0], sampler=model.card.default.sampler, steps=STEPS))


def random_network() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**NETWORK).eval()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_pipeline_saved_by_diffusers_gives_its_picture_here(name: str, tmp_path: Path) -> None:
    unet, scheduler = random_network(), SCHEDULERS[name]()
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    expected = by_diffusers(unet, scheduler)
    assert load_model(tmp_path).card.default.sampler == name.split(",")[0]
    between = ((expected > 0) & (expected < 255)).mean()
    assert between > 0.3, "most pixels are black or white: the test says little"
    assert np.abs(by_us(tmp_path).astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
        {"time_embedding_type": "learned", "num_train_timesteps": 1000, "mid_block_type": None, "act_fn": "gelu"},
        {
            "block_out_channels": (32, 32),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
    ],
    ids=["attention", "scale and shift", "resnet resampling", "learned time", "skip blocks"],
)
def test_what_we_write_is_a_pipeline_of_diffusers_with_the_same_picture(
    changes: dict[str, Any], tmp_path: Path, stir: Callable[..., None]
) -> None:
    config = UNetConfig.from_dict({**NETWORK, **changes})
    net = UNet(config)
    stir(net)
    scheduler = {"_class_name": "DDIMScheduler", **GENTLE, "timestep_spacing": "trailing"}
    save_model(tmp_path, config, net.state_dict(), scheduler, CardFile())
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    expected = by_pipeline(pipeline.unet.eval(), pipeline.scheduler)
    assert ((expected > 0) & (expected < 255)).mean() > 0.3
    assert np.abs(by_us(tmp_path).astype(int) - expected.astype(int)).max() <= 1
