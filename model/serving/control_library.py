"""The ControlNets that a model offers: which there are, and their networks, read when a request first names them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoised.model.backends.control_backend import ControlBackend
from denoised.model.backends.numerics import Precision
from denoised.model.checkpoints.control.control_base import check_base
from denoised.model.checkpoints.control.control_files import (
    ControlFolder,
    check_control_net,
    list_control_nets,
    load_control_net,
)
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.card import CardControl
from denoised.model.serving.conditioning import ControlConditioning, ControlRequest
from denoised.model.serving.protocol import Picture

MAX_LOADED = 4  # networks that stay in memory without a job; the one that was used longest ago makes room


@dataclass(frozen=True)
class ControlSelection:
    """The ControlNets of a folder, for one model.

    Attributes:
        fitting: Those that fit it.
        problems: Why each of the others does not, in one line that names its folder.
    """

    fitting: Sequence[ControlFolder] = ()
    problems: Sequence[str] = ()

    @property
    def listed(self) -> list[CardControl]:
        """Those that fit, for the model's card."""
        return [
            CardControl(name=each.name, digest=each.digest, channels=each.config.conditioning_channels)
            for each in self.fitting
        ]


def select_control_nets(folder: Path | None, unet: TextUNetConfig, channels: int, downscale: int) -> ControlSelection:
    """Check every ControlNet of a folder against a model. One that does not fit is left out: it may fit another model.

    channels: of the latents; downscale: pixels along each side for one latent.

    Raises:
        CheckpointError: if the folder cannot be read.
    """
    fitting, problems = [], []
    for path in list_control_nets(folder) if folder is not None else []:
        try:
            found = check_control_net(path)
            check_base(found, unet, channels, downscale)
            fitting.append(found)
        except CheckpointError as error:
            problems.append(str(error))
    return ControlSelection(fitting, problems)


class ControlLibrary:
    """The ControlNets of a model by name. Thread-safe.

    A network stays in memory while a job uses it, whatever else is read.
    """

    def __init__(self, folders: Sequence[ControlFolder], device: torch.device, precision: Precision) -> None:
        self._folders = {folder.name: folder for folder in folders}
        self._device = device
        self._precision = precision
        self._loaded: OrderedDict[str, ControlBackend] = OrderedDict()  # the most recent last
        self._lock = threading.Lock()

    def controls(
        self, requests: Sequence[ControlRequest], pictures: Sequence[Picture]
    ) -> tuple[ControlConditioning, ...]:
        """What the networks of a request need in each evaluation. Reads them, and sees their pictures.

        pictures: the control picture of each, (H, W, C).

        Raises:
            PlanError: for a name that the model does not offer.
            CheckpointError: for a ControlNet that cannot be read any more.
        """
        found = []
        for request, picture in zip(requests, pictures, strict=True):
            network = self._network(request.name)
            found.append(ControlConditioning(request, network, network.hint(_in_unit_range(picture))))
        return tuple(found)

    def _network(self, name: str) -> ControlBackend:
        if name not in self._folders:
            raise PlanError(f"controls: {name!r:.100} is not offered (offered: {', '.join(list(self._folders)[:20])})")
        with self._lock:
            if name not in self._loaded:
                network = load_control_net(self._folders[name])
                self._loaded[name] = ControlBackend(network, self._device, self._precision)
                if len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]


def _in_unit_range(picture: Picture) -> Tensor:
    """Pixels (H, W, C) as numbers (C, H, W) in 0 … 1, as diffusers' pipelines prepare a control picture."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
