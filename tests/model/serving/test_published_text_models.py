"""Configs of published text models: which are served, how the others are refused, and shrunken copies end to end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler

from denoised.model.checkpoints.text_to_image.text_checks import check_image_size, check_networks
from denoised.model.errors import CheckpointError
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.loading import load_text_model
from tests.model.networks.text_unet.text_unet_configs import PUBLISHED, shrink
from tests.model.serving.text_pictures import LEVELS, STEPS, difference, picture
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, build_xl_pipeline, picture_of, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# OpenAI's CLIP of Stable Diffusion 1, OpenCLIP's of 2, and the two of XL.
CLIP_L = TextEncoderConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
CLIP_H = TextEncoderConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
CLIP_G = replace(CLIP_H, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, projection_dim=1280)
AUTOENCODER = AutoencoderConfig(block_out_channels=(128, 256, 512, 512), sample_size=512)

# Pixels along each side, or a part of the refusal.
OUTCOMES: dict[str, int | str] = {
    "sd 1": 512,
    "sd 1 inpainting": 512,
    "instruct-pix2pix": 512,
    "sd 2.1 base": 512,
    "sd 2.1 at 768": 768,
    "sd 2 depth": "takes depth maps next to the latents",
    "sd turbo": 512,
    "x4 upscaler": "takes a small picture next to the latents, to enlarge it",
    "sdxl base": 1024,
    "sdxl refiner": "this is the refiner of Stable Diffusion XL",
    "sdxl turbo": 512,
    "lcm, distilled from sd 1": 768,
    "lcm, distilled from sdxl": 1024,
    "ssd-1b": 1024,
    "small-sd": 512,
    "tiny-sd": 512,
}
# diffusers' layout of a U-Net whose config names none.
LAYOUT: dict[str, Any] = {
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
}


def encoders_of(unet: dict[str, Any]) -> list[TextEncoderConfig]:
    """The text encoders of a published U-Net."""
    return {768: [CLIP_L], 1024: [CLIP_H], 1280: [CLIP_G], 2048: [CLIP_L, CLIP_G]}[unet["cross_attention_dim"]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_served_or_refused_in_one_line(name: str) -> None:
    raw, path = PUBLISHED[name], Path("unet/config.json")
    unet, outcome = TextUNetConfig.from_dict(raw), OUTCOMES[name]
    vae = replace(AUTOENCODER, block_out_channels=AUTOENCODER.block_out_channels[: 3 if name == "x4 upscaler" else 4])
    is_xl = "addition_embed_type" in raw
    if isinstance(outcome, int):
        check_networks(path, unet, vae, encoders_of(raw), is_xl=is_xl)
        assert check_image_size(path, unet, vae) == (outcome, outcome)
        return
    with pytest.raises(CheckpointError, match=re.escape(outcome)) as caught:
        check_networks(path, unet, vae, encoders_of(raw), is_xl=is_xl)
    assert "\n" not in str(caught.value)


# tests/model/networks/text_unet compares every shrunken network with diffusers' own.
@pytest.mark.parametrize(
    "name",
    [
        "tiny-sd",
        "lcm, distilled from sdxl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("sd 2.1 at 768", "sd turbo", "small-sd", "sdxl base", "ssd-1b")
        ),
    ],
)
def test_a_shrunken_copy_makes_the_picture_of_diffusers(name: str, tmp_path: Path) -> None:
    unet = {**LAYOUT, **shrink(PUBLISHED[name])}
    options: dict[str, Any] = {"unet": unet, "text": {"hidden_size": unet["cross_attention_dim"]}}
    if "addition_embed_type" in unet:
        text = ({"hidden_size": 20}, {"hidden_size": unet["cross_attention_dim"] - 20, "projection_dim": 16})
        options = {"build": build_xl_pipeline, "unet": unet, "text": text}
    pipeline = save_pipeline(tmp_path / "shrunken", **options)
    pipeline.scheduler = DDIMScheduler.from_config(SCHEDULER)
    text_fields: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 7.5}
    expected = picture_of(pipeline, 5, num_inference_steps=STEPS, **text_fields)
    found = picture(load_text_model(tmp_path / "shrunken"), sampler="ddim", steps=STEPS, guidance_scale=7.5)
    assert expected.std() > 5
    assert difference(found, expected) <= LEVELS
