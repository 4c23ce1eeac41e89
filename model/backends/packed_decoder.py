"""How an autoencoder's decoder is evaluated so that a picture gets the same bits in a batch of any size.

On a CPU with oneDNN: the kernels of `model.backends.packed`, for a whole batch. On a CUDA device: PyTorch's own
kernels, for batches of one size. Elsewhere PyTorch's own kernels for one image at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.fixed_batch import check_fixed_batch
from denoised.model.backends.packed import can_pack, check_packed, pack
from denoised.model.errors import KernelError
from denoised.model.networks.autoencoder.autoencoder import Autoencoder

COMPARED_SIDE = 8  # latents along each side of the images on which the kernels are compared
COMPARED_IMAGES = 3


def pack_decoder(autoencoder: Autoencoder) -> str | None:
    """Replace the layers of the decoder by packed ones, in place, if they compute the same. The encoder stays as it is.

    Returns None, or why the decoder is still PyTorch's own, so that its bits depend on the batch.
    """
    device = next(autoencoder.parameters()).device
    if not can_pack(device):
        return f"no packed kernels for {device}"
    own = {"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv}
    latents = reference_latents(autoencoder, COMPARED_IMAGES)
    # PyTorch's own output, before any layer is replaced.
    expected = _decode_each(autoencoder, latents)
    packed = pack(nn.ModuleDict({name: deepcopy(part) for name, part in own.items() if part is not None}))
    _replace(autoencoder, dict(packed.items()))
    try:
        check_packed("decoder", expected, _decode_each(autoencoder, latents), _decode(autoencoder, latents))
    except KernelError as error:
        _replace(autoencoder, own)
        return str(error)
    return None


def _replace(autoencoder: Autoencoder, parts: Mapping[str, nn.Module | None]) -> None:
    for name, part in parts.items():
        setattr(autoencoder, name, part)


def decodes_fixed_batches(autoencoder: Autoencoder, size: int) -> bool:
    """Whether the kernels of a CUDA device give a picture the same bits at every place of a batch of `size`."""

    def evaluate(latents: Tensor) -> Tensor:
        return _decode(autoencoder, latents)

    if not next(autoencoder.parameters()).is_cuda:
        return False
    try:
        check_fixed_batch("decoder", evaluate, reference_latents(autoencoder, size))
    except (KernelError, torch.OutOfMemoryError):
        return False
    return True


def reference_latents(autoencoder: Autoencoder, count: int) -> Tensor:
    """(count, C, 8, 8) random latents on the decoder's device."""
    generator = torch.Generator().manual_seed(0)
    shape = count, autoencoder.config.latent_channels, COMPARED_SIDE, COMPARED_SIDE
    return torch.randn(shape, generator=generator).to(next(autoencoder.parameters()).device)


@torch.inference_mode()
def _decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    return autoencoder.decode(latents)


@torch.inference_mode()
def _decode_each(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    return torch.cat([autoencoder.decode(each) for each in latents.split(1)])
