"""How a text-conditioned U-Net is evaluated so that an image gets the same bits in a batch of any size.

On a CPU with oneDNN: the kernels of `model.backends.packed`, for the whole batch at once. Elsewhere PyTorch's own
kernels, which depend on the shape of the whole batch, for one image at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from denoised.model.backends.comparison import LIMITS
from denoised.model.backends.numerics import PACKED, PER_IMAGE, numerics
from denoised.model.backends.packed import can_pack, pack
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet import TextUNet
from denoised.model.networks.text_unet_config import SIZE_IDS

COMPARED_ROWS = 3
COMPARED_TOKENS = 77


class TextBackend(Protocol):
    """The function of one `TextUNet`. Not for two threads at a time."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """x: (B, C, H, W); t: (B,); context: (B, M, cross_attention_dim). Returns (B, out_channels, H, W).

        added: `TextUNetConfig.added_inputs`, as `TextUNet.forward` takes them.
        """
        ...


class PerImageTextUNet:
    """The network's own forward pass, for each image by itself."""

    def __init__(self, unet: TextUNet) -> None:
        self._unet = unet

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        rows = [slice(row, row + 1) for row in range(len(x))]
        return torch.cat([self._unet(x[row], t[row], context[row], **_rows(added, row)) for row in rows])


@dataclass(frozen=True)
class TextSelection:
    """The backend of a text-conditioned network.

    Attributes:
        backend: It evaluates the network from now on; the network itself may have lost its weights to it.
        numerics: What its bits depend on (`model.backends.numerics`).
        network: The module whose forward pass the backend is: its layers can be hooked (`adapted_network`).
        packed: Whether that module is packed.
        fallback: Why a faster backend is not available; None if this is the fastest.
    """

    backend: TextBackend
    numerics: str
    network: nn.Module
    packed: bool
    fallback: str | None = None


def select_text_backend(unet: TextUNet, timesteps: int, device: str) -> TextSelection:
    """The fastest backend that computes the same function as the network. timesteps: T of the training."""
    fallback = None
    if can_pack(torch.device(device)):
        try:
            packed = pack(deepcopy(unet))
            check_backend(packed, unet, timesteps)
        except KernelError as error:
            fallback = str(error)
        else:
            unet.to("meta")  # frees the weights: the kernels have packed copies of their own
            return TextSelection(packed, numerics(device, PACKED), packed, packed=True)
    return TextSelection(PerImageTextUNet(unet), numerics(device, PER_IMAGE), unet, packed=False, fallback=fallback)


@torch.inference_mode()
def check_backend(backend: TextBackend, unet: TextUNet, timesteps: int) -> None:
    """Compare a backend with the network on the smallest latents, alone and in a batch.

    Raises:
        KernelError: if it is off by more than rounding, or an image's bits depend on the batch.
    """
    x, t, context, added = _reference_inputs(unet, timesteps)
    together = backend(x, t, context, **added)
    for row in range(COMPARED_ROWS):
        own = slice(row, row + 1)
        inputs, own_added = (x[own], t[own], context[own]), _rows(added, own)
        alone, expected = backend(*inputs, **own_added)[0], unet(*inputs, **own_added)[0]
        if not torch.equal(alone, together[row]):
            raise KernelError(f"the {PACKED} backend gives an image other bits in a batch of {COMPARED_ROWS}")
        norm, error = expected.norm().item(), (alone - expected).norm().item()
        limit = LIMITS["float32"] * max(norm, 1e-3 * expected.numel() ** 0.5)
        if expected.isfinite().all() and not error <= limit:
            raise KernelError(
                f"the {PACKED} backend computes another function than the network: at t = {t[row]:g} it is off by "
                f"{error / max(norm, 1e-30):.2g} of the output (allowed: {LIMITS['float32']:g})"
            )


def _rows(added: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in added.items()}


def _reference_inputs(unet: TextUNet, timesteps: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Random x, t, context and added inputs of COMPARED_ROWS images."""
    config, generator = unet.config, torch.Generator().manual_seed(0)
    side = 2 * config.downscale
    dims = config.cross_attention_dim
    width = dims[0] if isinstance(dims, tuple) else dims
    x = torch.randn(COMPARED_ROWS, config.in_channels, side, side, generator=generator)
    context = torch.randn(COMPARED_ROWS, COMPARED_TOKENS, width, generator=generator)
    added = {
        "pooled": torch.randn(COMPARED_ROWS, max(config.pooled_dim, 0), generator=generator),
        "size_ids": torch.randint(0, 1024, (COMPARED_ROWS, SIZE_IDS), generator=generator).float(),
        "guidance": torch.linspace(1.0, 8.0, COMPARED_ROWS),
    }
    named = {name: added[name] for name in config.added_inputs}
    return x, torch.linspace(0, timesteps - 1, COMPARED_ROWS), context, named
