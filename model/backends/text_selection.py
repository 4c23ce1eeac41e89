"""Choose the backend of a text-conditioned U-Net: an image gets the same bits from it in a batch of any size.

On a CPU in float32: compiled kernels (`model.backends.native.transformers`) if they fit the network; else, with oneDNN,
the kernels of `model.backends.packed`, for the whole batch at once. On a CUDA device: recorded graphs
(`model.backends.text_graphs`). Elsewhere, in bfloat16 on a CPU, and where a network cannot be recorded, PyTorch's own
kernels for one image at a time.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from denoised.model.backends.comparison import LIMITS
from denoised.model.backends.native.transformers.text_network import NativeTextUNet, fits
from denoised.model.backends.numerics import GRAPHS, NATIVE, PACKED, PER_IMAGE, Precision, numerics
from denoised.model.backends.packed import can_pack, pack
from denoised.model.backends.precision import arithmetic, converted, set_arithmetic
from denoised.model.backends.text_backend import (
    ModuleBackend,
    PerImageTextUNet,
    TextBackend,
    WholeBatchTextUNet,
    select_rows,
)
from denoised.model.backends.text_graphs import GraphedTextUNet
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import SIZE_IDS

COMPARED_ROWS = 3
COMPARED_TOKENS = 77  # of one part of a prompt


@dataclass(frozen=True)
class TextSelection:
    """The backend of a text-conditioned network.

    Attributes:
        backend: It evaluates the network from now on; the network itself may have lost its weights to it.
        numerics: What its bits depend on (`model.backends.numerics`).
        adaptable: What evaluates it for rows with adapters or ControlNets: the forward pass of `network`; `backend`
            itself unless that is compiled. None if the network has no other form than the compiled one.
        network: Its layers can be hooked (`adapted_network`).
        packed: Whether that module is packed.
        fallback: Why a faster backend is not available; None if this is the fastest.
        precision: Of the network's layers.
        refused: Why it is not the one that was asked for; None if it is.
    """

    backend: TextBackend
    numerics: str
    adaptable: ModuleBackend | None
    network: nn.Module
    packed: bool
    fallback: str | None = None
    precision: Precision = "float32"
    refused: str | None = None


def select_text_backend(
    unet: TextUNet, timesteps: int, device: str, *, adapted: bool = False, precision: Precision = "float32"
) -> TextSelection:
    """The fastest backend that computes the same function as the network, in a precision that the device has.

    In a precision in which the network computes something else, such as numbers that overflow, it is served in float32.

    timesteps: T of the training; adapted: whether there are adapters or ControlNets, for which compiled kernels have no
    place.
    """
    if torch.device(device).type == "cuda":
        set_arithmetic(precision)
    if precision == "float32":
        return _select_float32(unet, timesteps, device, adapted=adapted)
    own = converted(unet, precision)
    backend = PerImageTextUNet(own)
    try:
        check_backend(backend, unet, timesteps, precision, precision)
    except KernelError as error:
        if torch.device(device).type == "cuda":
            set_arithmetic("float32")
        return replace(_select_float32(unet, timesteps, device, adapted=adapted), refused=str(error))
    string = numerics(device, PER_IMAGE, precision)
    selection = TextSelection(backend, string, backend, own, packed=False, precision=precision)
    selection = _with_graphs(selection, unet, own, timesteps, device)
    if own is not unet:
        unet.to("meta")  # frees the weights in float32
    return selection


def _with_graphs(selection: TextSelection, unet: TextUNet, own: TextUNet, timesteps: int, device: str) -> TextSelection:
    """The same selection with recorded graphs for plain rows, on a CUDA device that can record the network.

    own: the network in the precision of the selection.
    """
    if torch.device(device).type != "cuda":
        return selection
    precision = selection.precision
    x, t, context, added = _reference_inputs(unet, timesteps, _own_shape(unet))
    example = {name: tensor[:1] for name, tensor in {"x": x, "t": t, "context": context, **added}.items()}
    try:
        graphed = GraphedTextUNet(own, example, timesteps, precision)
        check_backend(graphed, unet, timesteps, GRAPHS, precision)
    except KernelError as error:
        return replace(selection, fallback=f"{error}; it is served image by image")
    return replace(selection, backend=graphed, numerics=numerics(device, f"{GRAPHS}-{graphed.tile_rows}", precision))


def _select_float32(unet: TextUNet, timesteps: int, device: str, *, adapted: bool) -> TextSelection:
    native, reason = None, None
    shape = _own_shape(unet)
    if torch.device(device).type == "cpu" and fits(unet, shape):
        try:
            native = NativeTextUNet(unet, shape)
            check_backend(native, unet, timesteps, NATIVE)
        except KernelError as error:
            native, reason = None, str(error)
    if native is not None and not adapted:
        unet.to("meta")  # frees the weights: the kernels have packed copies of their own
        return TextSelection(native, numerics(device, NATIVE), None, unet, packed=False)
    selection = _select_uncompiled(unet, timesteps, device)
    if native is not None:
        # Plain rows run on the compiled kernels, rows with adapters or ControlNets on the module.
        return replace(selection, backend=native, numerics=numerics(device, NATIVE), fallback=None)
    reasons = [each for each in (reason, selection.fallback) if each is not None]
    return replace(selection, fallback="; ".join(reasons) or None)


def _select_uncompiled(unet: TextUNet, timesteps: int, device: str) -> TextSelection:
    """The faster of the backends that are a module's forward pass."""
    fallback = None
    if can_pack(torch.device(device)):
        # A copy, because the comparison needs the network with its own layers.
        module = pack(deepcopy(unet))
        packed = WholeBatchTextUNet(module)
        try:
            check_backend(packed, unet, timesteps)
        except KernelError as error:
            fallback = str(error)
        else:
            unet.to("meta")
            return TextSelection(packed, numerics(device, PACKED), packed, module, packed=True)
    per_image = PerImageTextUNet(unet)
    string = numerics(device, PER_IMAGE)
    selection = TextSelection(per_image, string, per_image, unet, packed=False, fallback=fallback)
    return _with_graphs(selection, unet, unet, timesteps, device)


@torch.inference_mode()
def check_backend(
    backend: TextBackend, unet: TextUNet, timesteps: int, name: str = PACKED, precision: Precision = "float32"
) -> None:
    """Compare a backend with the network in float32, alone and in a batch.

    The latents are the smallest, which take the least time. Compiled kernels and graphs are compared on the latents
    that they were made for, also in the background.

    Raises:
        KernelError: if it is off by more than rounding, or an image's bits depend on the batch.
    """
    x, t, context, added = _reference_inputs(unet, timesteps, _own_shape(unet) if name in (NATIVE, GRAPHS) else None)
    together = backend(x, t, context, **added)
    if name in (NATIVE, GRAPHS) and not torch.equal(backend.begin(x, t, context, **added)(), together):
        raise KernelError(f"the {name} backend gives an image other bits in the background")
    for row in range(COMPARED_ROWS):
        own = slice(row, row + 1)
        inputs, own_added = (x[own], t[own], context[own]), select_rows(added, own)
        with arithmetic("float32"):
            expected = unet(*inputs, **own_added)[0]
        alone = backend(*inputs, **own_added)[0]
        if not torch.equal(alone, together[row]) and alone.isfinite().all():
            raise KernelError(f"the {name} backend gives an image other bits in a batch of {COMPARED_ROWS}")
        norm, error = expected.norm().item(), (alone - expected).norm().item()
        # A network that outputs almost zero is measured against 1e-3 for each number, not against its own norm.
        limit = LIMITS[precision] * max(norm, 1e-3 * expected.numel() ** 0.5)
        # `not <=`, so that an error of NaN counts as too large.
        if expected.isfinite().all() and not error <= limit:
            raise KernelError(
                f"the {name} backend computes another function than the network: at t = {t[row]:g} it is off by "
                f"{error / max(norm, 1e-30):.2g} of the output (allowed: {LIMITS[precision]:g})"
            )


def _own_shape(unet: TextUNet) -> tuple[int, int, int]:
    """(C, H, W) of the latents that the network was trained on; SD 1's without a size in the config."""
    size = unet.config.sample_size or 64
    height, width = size if isinstance(size, tuple) else (size, size)
    return unet.config.in_channels, height, width


def _reference_inputs(
    unet: TextUNet, timesteps: int, shape: tuple[int, int, int] | None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Random x, t, context and added inputs of COMPARED_ROWS images, on the network's device.

    shape: (C, H, W), None for the smallest.
    """
    config, generator, device = unet.config, torch.Generator().manual_seed(0), unet.conv_in.weight.device
    side = 2 * config.downscale
    dims = config.cross_attention_dim
    width = dims[0] if isinstance(dims, tuple) else dims
    # 2·downscale: the lowest level still has 2×2 pixels, so that convolutions see neighbors.
    x = torch.randn(COMPARED_ROWS, *(shape or (config.in_channels, side, side)), generator=generator)
    context = torch.randn(COMPARED_ROWS, COMPARED_TOKENS, width, generator=generator)
    added = {
        "pooled": torch.randn(COMPARED_ROWS, max(config.pooled_dim, 0), generator=generator),
        "size_ids": torch.randint(0, 1024, (COMPARED_ROWS, SIZE_IDS), generator=generator).float(),
        "guidance": torch.linspace(1.0, 8.0, COMPARED_ROWS),
    }
    named = {name: added[name].to(device) for name in config.added_inputs}
    return x.to(device), torch.linspace(0, timesteps - 1, COMPARED_ROWS).to(device), context.to(device), named
