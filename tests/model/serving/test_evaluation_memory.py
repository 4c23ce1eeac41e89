"""The memory of an evaluation, estimated from a config, against what PyTorch allocates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.loading import ZOO, _evaluation_memory, load_model
from tests.text_pipelines import UNET

ATTENDS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
# Levels of Stable Diffusion 1 and of XL, shrunken.
LEVELS = {"sd": (ATTENDS, ATTENDS, ATTENDS, PLAIN), "xl": (PLAIN, ATTENDS, ATTENDS)}


def peak_bytes(run: Callable[[], object]) -> int:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_estimate_for_a_text_model_is_near_what_is_allocated(levels: tuple[str, ...]) -> None:
    up = tuple(kind.replace("Down", "Up") for kind in reversed(levels))
    channels = tuple(32 * 2 ** min(level, 2) for level in range(len(levels)))
    blocks = {"down_block_types": levels, "up_block_types": up, "block_out_channels": channels, "layers_per_block": 2}
    config = TextUNetConfig.from_dict({**UNET, **blocks, "norm_num_groups": 16})
    network, rows = TextUNet(config).eval(), 2
    for side in (32, 64):
        x, context = torch.randn(rows, 4, side, side), torch.randn(rows, 77, 32)
        found = peak_bytes(lambda x=x, c=context: network(x, torch.zeros(rows), c)) / rows  # type: ignore[misc]
        assert 0.6 < _evaluation_memory(config, "float32", controlled=False).row_bytes(side, side) / found < 1.5
    half, whole = (_evaluation_memory(config, precision, controlled=False) for precision in ("bfloat16", "float32"))
    assert half.row_bytes(64, 64) * 2 == whole.row_bytes(64, 64)
    assert _evaluation_memory(config, "float32", controlled=True).row_bytes(64, 64) > whole.row_bytes(64, 64)


def test_the_estimate_for_a_model_of_pixels_is_near_what_is_allocated() -> None:
    model = load_model(ZOO / "fashion-mnist")
    x, label = torch.randn(4, *model.shape), torch.zeros(4, dtype=torch.long)
    found = peak_bytes(lambda: model.unet(x, torch.zeros(4), label)) / 4
    assert 0.6 < model.evaluation_bytes(*model.shape[1:]) / found < 1.5
