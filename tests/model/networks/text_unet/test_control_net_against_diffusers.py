"""ControlNets against diffusers' `ControlNetModel`: same names, same weights, same output, same effect on a U-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from denoised.model.errors import CheckpointError
from denoised.model.networks.text_unet.control_net import ControlNet, guess_mode_scales
from denoised.model.networks.text_unet.control_net_config import ControlNetConfig
from denoised.model.networks.text_unet.residuals import Residuals
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

# Of the Hub: lllyasviel/sd-controlnet-canny, thibaud/controlnet-sd21-canny-diffusers,
# diffusers/controlnet-canny-sdxl-1.0 and its -small, lllyasviel/control_v11e_sd15_shuffle.
SD15: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "class_embed_type": None,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}
SDXL: dict[str, Any] = {
    **SD15,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "conditioning_channels": 3,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "global_pool_conditions": False,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}
SD21_HEADS = [5, 10, 20, 20]
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd 1.5": SD15,
    "sd 1.5, shuffle": {**SD15, "global_pool_conditions": True},
    "sd 2.1": {**SD15, "attention_head_dim": SD21_HEADS, "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": SDXL,
    "sdxl, small": {
        **SDXL,
        "down_block_types": ["DownBlock2D"] * 3,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": 1,
    },
}
PARAMETERS = {"sd 1.5": 361_279_120}
TINY: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "conditioning_embedding_out_channels": [8, 12],
}
SMALL: dict[str, dict[str, Any]] = {
    "sd": TINY,
    "two layers, bgr": {**TINY, "layers_per_block": 2, "controlnet_conditioning_channel_order": "bgr"},
    "pooled": {**TINY, "global_pool_conditions": True},
    "gray, sd 2": {**TINY, "conditioning_channels": 1, "use_linear_projection": True, "attention_head_dim": [2, 4]},
    "no attention": {**TINY, "down_block_types": ["DownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"},
    "sdxl": {
        **TINY,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
}
ROWS = 2


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def inputs_of(config: ControlNetConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Random inputs of a ControlNet by our names, and a control picture."""
    draw = torch.Generator().manual_seed(1)
    inputs = {
        "x": torch.randn(ROWS, 4, 8, 8, generator=draw),
        "t": torch.tensor([1, 981]),
        "context": torch.randn(ROWS, 7, 32, generator=draw),
    }
    if config.unet.addition_embed_type is not None:
        inputs |= {"pooled": torch.randn(ROWS, 20, generator=draw), "size_ids": torch.full((ROWS, 6), 16.0)}
    return inputs, torch.rand(ROWS, config.conditioning_channels, 16, 16, generator=draw)


def both(raw: dict[str, Any], stir: Callable[..., None]) -> tuple[ControlNetModel, ControlNet]:
    theirs, ours = ControlNetModel(**raw).eval(), ControlNet(ControlNetConfig.from_dict(raw)).eval()
    stir(theirs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def residuals_of_diffusers(network: ControlNetModel, inputs: dict[str, Tensor], picture: Tensor, **options: Any) -> Any:
    added = {"text_embeds": inputs.get("pooled"), "time_ids": inputs.get("size_ids")}
    arguments = (inputs["x"], inputs["t"], inputs["context"], picture)
    return network(*arguments, added_cond_kwargs=added, return_dict=False, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_tensors_of_diffusers(name: str) -> None:
    """Key set, shapes and parameter count, without allocating a weight."""
    with torch.device("meta"):
        ours, theirs = ControlNet(ControlNetConfig.from_dict(PUBLISHED[name])), ControlNetModel(**PUBLISHED[name])
    assert shapes(ours) == shapes(theirs)
    parameters = sum(shape.numel() for shape in shapes(ours).values())
    assert parameters == PARAMETERS.get(name, parameters)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_give_the_residuals_of_diffusers(name: str, stir: Callable[..., None]) -> None:
    theirs, ours = both(SMALL[name], stir)
    inputs, picture = inputs_of(ours.control)
    with torch.inference_mode():
        down, middle = residuals_of_diffusers(theirs, inputs, picture)
        found = ours(**inputs, hint=ours.hint(picture))
    assert len(found) == len(down) + 1
    for each, expected in zip(found, [*down, middle], strict=True):
        assert name == "pooled" or expected.std() > 0.02
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)


def test_guess_mode_scales_residuals_as_diffusers_does(stir: Callable[..., None]) -> None:
    theirs, ours = both(TINY, stir)
    inputs, picture = inputs_of(ours.control)
    with torch.inference_mode():
        down, middle = residuals_of_diffusers(theirs, inputs, picture, guess_mode=True, conditioning_scale=0.7)
        found = ours(**inputs, hint=ours.hint(picture))
    scales = guess_mode_scales(len(found))
    for each, scale, expected in zip(found, scales, [*down, middle], strict=True):
        torch.testing.assert_close(0.7 * scale * each, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "pooled"])
def test_residuals_change_their_rows_of_a_unet_as_in_diffusers_and_no_other(
    name: str, stir: Callable[..., None]
) -> None:
    raw = {name: value for name, value in TINY.items() if not name.startswith("conditioning")}
    raw |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "sample_size": 8}
    unet, own = UNet2DConditionModel(**raw).eval(), TextUNet(TextUNetConfig.from_dict(raw)).eval()
    stir(unet)
    own.load_state_dict(unet.state_dict())
    network = both(SMALL[name], stir)[1]
    inputs, picture = inputs_of(network.control)
    with torch.inference_mode():
        maps = network(**inputs, hint=network.hint(picture))
        options = {"down_block_additional_residuals": maps[:-1], "mid_block_additional_residual": maps[-1]}
        expected = unet(inputs["x"], inputs["t"], inputs["context"], **options).sample
        without = own(**inputs)
        second = Residuals.of({1: [each[1] for each in maps]})
        found = own(**inputs, residuals=second)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-5)
    assert torch.equal(found[0], without[0])
    assert (found[1] - without[1]).abs().max() > 1e-2


def test_rows_of_pooled_and_other_residuals_join() -> None:
    found = Residuals.of({2: [torch.ones(3, 1, 1)], 0: [torch.zeros(3, 2, 2)]})
    assert found is not None
    assert (found.rows, found.maps[0].shape) == ([0, 2], (2, 3, 2, 2))
    chosen = found.select([1, 2])
    assert chosen is not None
    assert (chosen.rows, chosen.maps[0].sum().item()) == ([1], 12)
    assert found.select([1]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioning_channels": 4}, "conditioning_channels = 4 is not supported (supported: 1, 3)"),
        ({"controlnet_conditioning_channel_order": "grb"}, "controlnet_conditioning_channel_order = 'grb'"),
        ({"conditioning_embedding_out_channels": None}, "conditioning_embedding_out_channels = None is not a list"),
        ({"global_pool_conditions": 1}, "global_pool_conditions = 1 is neither true nor false"),
        ({"addition_embed_type": "text"}, "addition_embed_type = 'text' is not supported"),
        ({"up_block_types": []}, "up_block_types = [] is not a key of a ControlNet"),
        ({"mid_block_type": None}, "mid_block_type = None is not supported in a ControlNet"),
        ({"down_block_types": [1, 2]}, "down_block_types = 1 is not supported"),
        ({"block_out_channels": [16, 30]}, "block_out_channels holds 30, not a multiple of norm_num_groups = 4"),
        ({"num_control_type": 6}, "config key 'num_control_type' is not understood"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ControlNetConfig.from_dict({**TINY, **change})
    assert message in str(caught.value)
