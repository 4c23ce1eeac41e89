"""Same seed, same picture as diffusers, from a folder it saved to the file that the command line writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from PIL import Image

from tests import fork_server

# diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEED, STEPS, SIZE = 11, 8, 16
# A network that was not trained predicts noise badly: under the usual β an unclipped picture ends black and white.
GENTLE: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.002}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": partial(EulerDiscreteScheduler, **GENTLE),
    "heun": partial(HeunDiscreteScheduler, **GENTLE),
    "dpmpp_2m": partial(DPMSolverMultistepScheduler, **GENTLE),
}


def network() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def serving(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One service with a pipeline of diffusers for every scheduler, each under its sampler's name."""
    folder = tmp_path_factory.mktemp("pipelines")
    arguments = []
    for name, scheduler in SCHEDULERS.items():
        kind = DDIMPipeline if name == "ddim" else DDPMPipeline
        kind(network(), scheduler()).save_pretrained(folder / name)
        arguments += ["--model", str(folder / name)]
    return start_service(folder / "data", *arguments, environment={"DENOISED_THREADS": "1"})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The network is tiny: a second thread only waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_pipeline(name: str) -> Any:
    pipeline = (DDIMPipeline if name == "ddim" else DDPMPipeline)(network(), SCHEDULERS[name]())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    return np.asarray(pipeline(generator=generator, num_inference_steps=STEPS).images[0])


@torch.inference_mode()
def by_loop(name: str) -> Any:
    """The loop of diffusers' documents for schedulers that have no pipeline of their own."""
    unet, scheduler = network(), SCHEDULERS[name]()
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_command_line_writes_the_picture_of_diffusers(serving: Any, name: str, tmp_path: Path) -> None:
    """The sampler is left out: a model's own is the one that its scheduler file is of."""
    request = ["--model", name, "--seed", str(SEED), "--steps", str(STEPS)]
    command = [sys.executable, "-m", "denoised", "generate", "--url", serving.url, "--out", str(tmp_path), *request]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.png")
    ours = np.asarray(Image.open(file)).astype(int)
    theirs = (by_pipeline if name in ("ddim", "ddpm") else by_loop)(name).astype(int)
    assert ((theirs > 0) & (theirs < 255)).mean() > 0.3, "most pixels are black or white: the test says little"
    assert ours.shape == theirs.shape == (SIZE, SIZE, 3)
    assert np.abs(ours - theirs).max() <= 1
