"""Build a served model from a folder; `model.checkpoints.reading` reads and checks the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from denoised.model.backends.numerics import Precision
from denoised.model.backends.selection import select_backend
from denoised.model.checkpoints.folders import model_name
from denoised.model.checkpoints.reading import read_checkpoint
from denoised.model.diffusion.grids import solver_levels
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.serving.card import CardGrid, ModelCard
from denoised.model.serving.pixel_model import PixelModel

ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be served.

    Attributes:
        model: On the fastest backend of its device; its card names the numerics.
        fallback: Why a faster backend is not available on this machine; None if this is the fastest.
    """

    model: PixelModel
    fallback: str | None


def load_for_serving(
    folder: Path | str,
    *,
    device: str = "cpu",
    name: str | None = None,
    max_images: int = 16,
    precision: Precision = "float32",
) -> LoadedModel:
    """Load a model on the fastest backend that gives an image the same bits at every batch size.

    Raises:
        CheckpointError: see `load_model`.
    """
    model = load_model(folder, device=device, name=name, max_images=max_images)
    selection = select_backend(model.unet, model.shape, model.card.timesteps, device, precision)
    model.backend = selection.backend
    model.card = model.card.model_copy(update={"numerics": selection.numerics})
    return LoadedModel(model, selection.fallback)


def load_model(
    folder: Path | str, *, device: str = "cpu", name: str | None = None, max_images: int = 16, numerics: str = ""
) -> PixelModel:
    """Load a model from a diffusers folder, evaluated by PyTorch's own kernels.

    name: what requests call it; the folder's name if not given.

    Raises:
        CheckpointError: in one line that names the file, the key and the cause.
    """
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    unet, noise = checkpoint.network, checkpoint.noise
    height, width = checkpoint.image_size
    grid = noise.grid(unet.config)
    card = ModelCard(
        name=name or model_name(folder),
        width=width,
        height=height,
        channels=unet.config.in_channels,
        labels=checkpoint.classes.labels,
        unconditional=checkpoint.classes.unconditional,
        timesteps=checkpoint.schedule.timesteps,
        prediction_type=noise.prediction_type,
        samplers=list(SAMPLERS),
        eta_samplers=[name for name, sampler in SAMPLERS.items() if sampler.takes_eta],
        karras_samplers=[name for name, sampler in SAMPLERS.items() if sampler.takes_karras],
        solver_samplers=[name for name, sampler in SAMPLERS.items() if sampler.levels is solver_levels],
        grid=CardGrid(spacing=grid.spacing, steps_offset=grid.steps_offset, karras=grid.karras),
        stages={name: sampler.stages for name, sampler in SAMPLERS.items() if sampler.stages > 1},
        extra_evaluations={name: sampler.extra for name, sampler in SAMPLERS.items() if sampler.extra},
        default=checkpoint.default,
        max_images=max_images,
        numerics=numerics,
        digest=checkpoint.digest,
    )
    return PixelModel(unet.to(device), checkpoint.schedule, noise.prediction_type, grid, noise.clipping, card)
