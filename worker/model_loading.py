"""The models that a worker serves: the bundled ones and the folders it was given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from denoised.jobs.request import with_format
from denoised.model.backends.graphs import GraphedUNet, Precision
from denoised.model.backends.native.network import NativeUNet
from denoised.model.backends.numerics import EAGER, GRAPHS, NATIVE, PACKED, numerics
from denoised.model.backends.packed import can_pack, pack
from denoised.model.errors import CheckpointError, KernelError
from denoised.model.networks.unet import UNet
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.pixel_model import PixelModel

log = logging.getLogger("denoised.worker")

DEFAULT = "fashion-mnist"  # of the bundled models, what a request gets that names none


def load_models(
    folders: Sequence[Path], *, device: str, max_images: int, precision: Precision = "float32"
) -> dict[str, PixelModel]:
    """Models by name; the first is the server's default.

    Raises:
        CheckpointError: for a folder that cannot be served, a device that is not there, a precision that it
            does not serve in, or two folders of one name.
    """
    _check_device(device, precision)
    models: dict[str, PixelModel] = {}
    for folder in (*bundled(), *folders):
        name = folder.resolve().name
        if name in models:
            raise CheckpointError(f"{folder}: a model named {name!r} is served already; rename one of the folders")
        model = load_model(folder, device=device, name=name, max_images=max_images)
        made_by = with_format(_take_fastest_path(model, device, precision))
        model.card = model.card.model_copy(update={"numerics": made_by})
        models[name] = model
    return models


def _take_fastest_path(model: PixelModel, device: str, precision: Precision) -> str:
    """Give a model the fastest network there is here that keeps the bits at every batch size; its numerics."""
    assert isinstance(model.unet, UNet)
    if model.device.type == "cuda":
        return _take_graphs(model, model.unet, device, precision)
    if model.device.type != "cpu":
        return numerics(device, EAGER)
    try:
        model.unet = NativeUNet(model.unet, model.shape)
        return numerics(device, NATIVE)
    except KernelError as error:
        log.warning("%s: %s; its evaluations take longer", model.card.name, error)
    if not can_pack(model.device):
        return numerics(device, EAGER)
    pack(model.unet)
    return numerics(device, PACKED)


def _take_graphs(model: PixelModel, unet: UNet, device: str, precision: Precision) -> str:
    try:
        model.unet = GraphedUNet(unet, model.shape, precision)
        return numerics(device, f"{GRAPHS}-{model.unet.bucket}", precision)
    except KernelError as error:
        log.warning("%s: %s; its evaluations take longer, in float32", model.card.name, error)
    torch.backends.cudnn.allow_tf32 = False
    return numerics(device, EAGER)


def bundled() -> list[Path]:
    """The model folders that come with the project, the default first."""
    folders = [path.parent for path in ZOO.glob("*/model_index.json")]
    return sorted(folders, key=lambda folder: (folder.name != DEFAULT, folder.name))


def _check_device(device: str, precision: Precision) -> None:
    if precision != "float32" and not device.startswith("cuda"):
        raise CheckpointError(f"precision {precision!r} is for CUDA devices; {device!r} serves in float32")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device!r} cannot be used here ({reason})") from error
