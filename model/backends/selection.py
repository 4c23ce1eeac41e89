"""Choose the fastest backend of a device that gives an image the same bits at every batch size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from denoised.model.backends.backend import Backend, EagerBackend
from denoised.model.backends.graphs import GraphedUNet
from denoised.model.backends.native.network import NativeUNet
from denoised.model.backends.numerics import EAGER, GRAPHS, NATIVE, PACKED, Precision, numerics
from denoised.model.backends.packed import can_pack, pack
from denoised.model.errors import KernelError
from denoised.model.networks.unet import UNet


@dataclass(frozen=True)
class Selection:
    """The backend of a network.

    Attributes:
        backend: It evaluates the network from now on; the U-Net itself may have lost its weights to it.
        numerics: What its bits depend on (`model.backends.numerics`).
        fallback: Why a faster backend is not available on this machine; None if this is the fastest.
    """

    backend: Backend
    numerics: str
    fallback: str | None = None


def select_backend(unet: UNet, shape: tuple[int, int, int], device: str, precision: Precision = "float32") -> Selection:
    """The fastest backend for images of shape (C, H, W); `precision` counts on CUDA devices alone."""
    kind = torch.device(device).type
    if kind == "cuda":
        return _for_cuda(unet, shape, device, precision)
    if kind == "cpu":
        return _for_cpu(unet, shape, device)
    return Selection(EagerBackend(unet), numerics(device, EAGER))


def _for_cpu(unet: UNet, shape: tuple[int, int, int], device: str) -> Selection:
    try:
        native = NativeUNet(unet, shape)
    except KernelError as error:
        if not can_pack(torch.device(device)):
            return Selection(EagerBackend(unet), numerics(device, EAGER), str(error))
        pack(unet)
        return Selection(EagerBackend(unet), numerics(device, PACKED), str(error))
    unet.to("meta")  # frees the weights: the kernels have packed copies of their own
    return Selection(native, numerics(device, NATIVE))


def _for_cuda(unet: UNet, shape: tuple[int, int, int], device: str, precision: Precision) -> Selection:
    try:
        graphed = GraphedUNet(unet, shape, precision)
    except KernelError as error:
        torch.backends.cudnn.allow_tf32 = False
        return Selection(EagerBackend(unet), numerics(device, EAGER), f"{error}; it is served in float32")
    return Selection(graphed, numerics(device, f"{GRAPHS}-{graphed.bucket}", precision))
