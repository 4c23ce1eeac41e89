"""Choose the fastest backend of a device that gives an image the same bits at every batch size.

Each is compared with the network before it is chosen (`model.backends.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch

from denoised.model.backends.backend import Backend, EagerBackend
from denoised.model.backends.comparison import ReferenceRows
from denoised.model.backends.graphs import GraphedUNet
from denoised.model.backends.native.network import NativeUNet
from denoised.model.backends.numerics import EAGER, GRAPHS, NATIVE, PACKED, PER_IMAGE, Precision, numerics
from denoised.model.backends.packed import can_pack, pack
from denoised.model.backends.precision import arithmetic
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet


@dataclass(frozen=True)
class BackendChoice:
    """The backend of a network.

    Attributes:
        backend: It evaluates the network from now on; the U-Net itself may have lost its weights to it.
        numerics: What its bits depend on (`model.backends.numerics`).
        fallback: Why a faster backend is not available on this machine; None if this is the fastest.
    """

    backend: Backend
    numerics: str
    fallback: str | None = None


def select_backend(
    unet: UNet, shape: tuple[int, int, int], timesteps: int, device: str, precision: Precision = "float32"
) -> BackendChoice:
    """The fastest backend that computes the same function as the network.

    shape: (C, H, W) of the images; timesteps: T of the training; precision: counts on CUDA devices alone.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return _for_cuda(unet, shape, timesteps, device, precision)
    if kind == "cpu":
        return _for_cpu(unet, shape, timesteps, device)
    return BackendChoice(EagerBackend(unet), numerics(device, EAGER))


def _for_cpu(unet: UNet, shape: tuple[int, int, int], timesteps: int, device: str) -> BackendChoice:
    reference = ReferenceRows.of(unet, shape, timesteps)
    candidates: dict[str, Callable[[], Backend]] = {NATIVE: lambda: NativeUNet(unet, shape)}
    if can_pack(torch.device(device)):
        candidates[PACKED] = lambda: EagerBackend(pack(deepcopy(unet)))
    reasons = []
    for name, build in candidates.items():
        try:
            backend = build()
            reference.check(backend, name)
        except KernelError as error:
            reasons.append(str(error))
            continue
        unet.to("meta")  # frees the weights: the kernels have packed copies of their own
        return BackendChoice(backend, numerics(device, name), "; ".join(reasons) or None)
    return BackendChoice(EagerBackend(unet), numerics(device, EAGER), "; ".join(reasons))


def _for_cuda(
    unet: UNet, shape: tuple[int, int, int], timesteps: int, device: str, precision: Precision
) -> BackendChoice:
    with arithmetic("float32"):
        reference = ReferenceRows.of(unet, shape, timesteps)
    try:
        graphed = GraphedUNet(unet, shape, timesteps, precision)
        reference.check(graphed, GRAPHS, precision)
    except KernelError as error:
        torch.backends.cudnn.allow_tf32 = False
        backend = EagerBackend(unet, per_image=True)
        return BackendChoice(backend, numerics(device, PER_IMAGE), f"{error}; it is served in float32, image by image")
    return BackendChoice(graphed, numerics(device, f"{GRAPHS}-{graphed.tiling.rows}", precision))
