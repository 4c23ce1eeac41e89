"""Choose how a text encoder is evaluated so that a sequence gets the same states in a batch of any size.

| device | precision | kernels |
|---|---|---|
| CPU with oneDNN | float32 | those of `model.backends.packed`, for batches of any size |
| CUDA | any | PyTorch's own, for batches of one size (`model.backends.fixed_batch`) |
| others, and a CPU | bfloat16 | PyTorch's own, for one sequence at a time |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.backends.comparison import LIMITS
from denoised.model.backends.fixed_batch import check_fixed_batch
from denoised.model.backends.numerics import PACKED, PER_IMAGE, Precision, fixed_batches
from denoised.model.backends.packed_text_encoder import pack_text_encoder, reference_states, reference_tokens
from denoised.model.backends.precision import converted
from denoised.model.errors import KernelError
from denoised.model.networks.text_encoder.text_encoder import TextEncoder

MAX_BATCH = 16  # sequences of one evaluation, where the kernels do not depend on it
FIXED_BATCH = 8  # sequences of every evaluation, where they do


@dataclass(frozen=True)
class EncoderSelection:
    """A text encoder as it is evaluated.

    Attributes:
        network: The encoder; the one that it was made from may have lost its weights to it.
        kernels: Their name in `numerics`.
        batch: The most sequences of one evaluation.
        filled: Whether each evaluation has exactly `batch` sequences.
        refused: Why it is served in float32 although another precision was asked for; None if it is not.
    """

    network: TextEncoder
    kernels: str = PER_IMAGE
    batch: int = 1
    filled: bool = False
    refused: str | None = None

    @property
    def packed(self) -> bool:
        """Whether its layers are those of `model.backends.packed`."""
        return self.kernels == PACKED


def select_text_encoder(encoder: TextEncoder, precision: Precision) -> EncoderSelection:
    """The fastest kernels for an encoder on its device, in a precision that the device has."""
    own, refused = _in_precision(encoder, precision)
    if own is encoder:
        packed = pack_text_encoder(encoder)
        if not isinstance(packed, str):
            return EncoderSelection(packed, PACKED, MAX_BATCH, refused=refused)
    if own.text_model.final_layer_norm.weight.is_cuda and _has_fixed_batches(own):
        return EncoderSelection(own, fixed_batches(FIXED_BATCH), FIXED_BATCH, filled=True, refused=refused)
    return EncoderSelection(own, refused=refused)


def _in_precision(encoder: TextEncoder, precision: Precision) -> tuple[TextEncoder, str | None]:
    """The encoder with layers in a precision, and why it is still in float32 although it should not be."""
    own = converted(encoder, precision)
    if own is encoder:
        return encoder, None
    tokens = reference_tokens(encoder)
    expected, found = reference_states(encoder, tokens), reference_states(own, tokens)
    error, norm = (found - expected).norm().item(), expected.norm().item()
    if expected.isfinite().all() and not error <= LIMITS[precision] * norm:
        limit = f"(allowed: {LIMITS[precision]:g})"
        return encoder, f"in {precision}, its text encoder is off by {error / norm:.2g} of its output {limit}"
    encoder.to("meta")  # frees the weights in float32
    return own, None


def _has_fixed_batches(encoder: TextEncoder) -> bool:
    """Whether a sequence has the same bits at every place of a batch of FIXED_BATCH."""

    def evaluate(tokens: Tensor) -> Tensor:
        return reference_states(encoder, tokens)

    try:
        check_fixed_batch("text encoder", evaluate, reference_tokens(encoder, FIXED_BATCH))
    except (KernelError, torch.OutOfMemoryError):
        return False
    return True
