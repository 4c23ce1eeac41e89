"""The models that a worker serves: the bundled ones and the folders it was given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import ZOO, load_model
from model.denoiser import PixelModel
from model.errors import CheckpointError, KernelError
from model.native.network import NativeUNet
from model.packing import can_pack, pack
from model.unet import UNet
from worker.numerics import EAGER, NATIVE, PACKED, numerics

log = logging.getLogger("denoised.worker")

DEFAULT = "fashion-mnist"  # of the bundled models, what a request gets that names none


def load_models(folders: Sequence[Path], *, device: str, max_images: int) -> dict[str, PixelModel]:
    """Models by name; the first is the server's default.

    Raises:
        CheckpointError: for a folder that cannot be served, a device that is not there, or two
            folders of one name.
    """
    _check_device(device)
    models: dict[str, PixelModel] = {}
    for folder in (*bundled(), *folders):
        name = folder.resolve().name
        if name in models:
            raise CheckpointError(f"{folder}: a model named {name!r} is served already; rename one of the folders")
        model = load_model(folder, device=device, name=name, max_images=max_images)
        path = _take_fastest_path(model)
        model.card = model.card.model_copy(update={"numerics": numerics(device, path)})
        models[name] = model
    return models


def _take_fastest_path(model: PixelModel) -> str:
    """Give a model the fastest network there is here that keeps the bits at every batch size; returns its path."""
    if model.device.type != "cpu":
        return EAGER
    assert isinstance(model.unet, UNet)
    try:
        model.unet = NativeUNet(model.unet, model.shape)
        return NATIVE
    except KernelError as error:
        log.warning("%s: %s; its evaluations take longer", model.card.name, error)
    if not can_pack(model.device):
        return EAGER
    pack(model.unet)
    return PACKED


def bundled() -> list[Path]:
    """The model folders that come with the project, the default first."""
    folders = [path.parent for path in ZOO.glob("*/model_index.json")]
    return sorted(folders, key=lambda folder: (folder.name != DEFAULT, folder.name))


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device!r} cannot be used here ({reason})") from error
