"""What the levels of a U-Net cost, against a count by hand and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from denoised.model.networks.text_unet.text_level_costs import TOKENS, text_level_costs
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.unet.level_costs import level_costs
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from tests.text_pipelines import UNET, XL_UNET

CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


@pytest.mark.parametrize("classes", [None, 3])
def test_the_levels_add_up_to_the_whole_network(classes: int | None) -> None:
    unet = UNet(UNetConfig.from_dict({**CONFIG, "num_class_embeds": classes}))
    levels = level_costs(unet, 8, 8)
    assert [(level.height, level.width, level.channels) for level in levels] == [(8, 8, 8), (4, 4, 16)]
    assert [level.attention for level in levels] == [False, True]
    assert sum(level.parameters for level in levels) == sum(parameter.numel() for parameter in unet.parameters())
    label = None if classes is None else torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.randn(1, 1, 8, 8), torch.ones(1), label)
    # torch counts a multiplication and its addition as two; it may leave attention out on a CPU.
    attention = sum(2 * 2 * 16 * 16 * 16 for _ in range(4))
    assert 2 * sum(level.multiplications for level in levels) in (
        counter.get_total_flops(),
        counter.get_total_flops() + attention,
    )


def test_counting_leaves_no_hook_behind() -> None:
    unet = UNet(UNetConfig.from_dict(CONFIG))
    level_costs(unet, 8, 8)
    assert not any(module._forward_hooks for module in unet.modules())
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("sides", [(8, 8), (16, 48), (12, 20)])
def test_a_large_image_is_counted_on_a_small_one(sides: tuple[int, int]) -> None:
    unet = UNet(UNetConfig.from_dict(CONFIG))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet(torch.randn(1, 1, *sides), torch.ones(1))
    levels = level_costs(unet, *sides)
    assert [(level.height, level.width) for level in levels] == [sides, (sides[0] // 2, sides[1] // 2)]
    assert 2 * sum(level.multiplications for level in levels) == counter.get_total_flops()


@pytest.mark.parametrize("settings", [UNET, XL_UNET, {**UNET, "time_cond_proj_dim": 32}], ids=["sd", "xl", "lcm"])
def test_the_levels_of_a_text_network_add_up_to_the_whole(settings: dict[str, Any]) -> None:
    config = TextUNetConfig.from_dict({**settings, "in_channels": 4, "out_channels": 4})
    unet = TextUNet(config)
    levels = text_level_costs(unet, 16, 16)
    assert [(level.height, level.width, level.channels) for level in levels] == [(16, 16, 16), (8, 8, 32)]
    assert sum(level.parameters for level in levels) == sum(parameter.numel() for parameter in unet.parameters())
    shapes = {"pooled": (1, config.pooled_dim), "size_ids": (1, 6), "guidance": (1,)}
    named = {name: torch.ones(shapes[name]) for name in config.added_inputs}
    context = torch.randn(1, TOKENS, settings["cross_attention_dim"])
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet(torch.randn(1, 4, 16, 16), torch.ones(1), context, **named)
    assert 2 * sum(level.multiplications for level in levels) == counter.get_total_flops()
    assert text_level_costs(unet.to("meta"), 16, 16) == levels, "the weights need not be here"
