"""How much memory the ControlNets of a model may take next to its own weights. No weight is read."""

from __future__ import annotations

from pathlib import Path

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.control.control_base import check_base
from denoised.model.checkpoints.control.control_files import ControlFolder, list_control_nets, read_control_config
from denoised.model.checkpoints.weight_count import weight_bytes
from denoised.model.errors import CheckpointError
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.control_library import MAX_LOADED


def control_bytes(model: Path, controls: Path | None, precision: str = "float32") -> int:
    """The bytes of the largest ControlNets that may stay in memory with a model, `MAX_LOADED` of those that fit it.

    model: its folder; 0 for one that takes no prompt, or whose configs cannot be read, which loading it reports.
    controls: the folder of ControlNets.

    Raises:
        CheckpointError: if the folder of ControlNets or a file of weights cannot be read.
    """
    if controls is None or not (model / "vae" / "config.json").is_file():
        return 0
    try:
        unet = TextUNetConfig.from_dict(read_json(model / "unet" / "config.json"))
        vae = AutoencoderConfig.from_dict(read_json(model / "vae" / "config.json"))
    except CheckpointError:
        return 0
    fitting = [path for path in list_control_nets(controls) if _fits(path, unet, vae)]
    return sum(sorted((weight_bytes(path, precision) for path in fitting), reverse=True)[:MAX_LOADED])


def _fits(path: Path, unet: TextUNetConfig, vae: AutoencoderConfig) -> bool:
    try:
        found = ControlFolder(path.name, path, digest="", config=read_control_config(path))
        check_base(found, unet, vae.latent_channels, vae.downscale)
    except CheckpointError:
        return False  # loading the model says why
    return True
