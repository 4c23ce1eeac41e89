"""How a text encoder is evaluated so that a prompt gets the same states in a batch of any size.

On a CPU with oneDNN: the kernels of `model.backends.packed`, for a whole batch. Elsewhere PyTorch's own kernels, which
depend on the shape of the whole batch, for one sequence at a time.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from denoised.model.backends.packed import can_pack, check_packed, pack
from denoised.model.errors import KernelError
from denoised.model.networks.text_encoder.text_encoder import TextEncoder

COMPARED_SEQUENCES = 3
COMPARED_TOKENS = 16


def pack_text_encoder(encoder: TextEncoder) -> TextEncoder | str:
    """The encoder with packed layers, which takes its weights over, or why PyTorch's own layers stay."""
    device = encoder.text_model.final_layer_norm.weight.device
    if not can_pack(device):
        return f"no packed kernels for {device}"
    packed, tokens = pack(deepcopy(encoder)), _reference_tokens(encoder)
    try:
        each = torch.cat([_states(packed, own) for own in tokens.split(1)])
        own = torch.cat([_states(encoder, own) for own in tokens.split(1)])
        check_packed("text encoder", own, each, _states(packed, tokens))
    except KernelError as error:
        return str(error)
    encoder.to("meta")  # frees the weights: the packed layers have copies of their own
    return packed


def _reference_tokens(encoder: TextEncoder) -> Tensor:
    length = min(COMPARED_TOKENS, encoder.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(encoder.config.vocab_size, (COMPARED_SEQUENCES, length), generator=generator)


@torch.inference_mode()
def _states(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """(B, N·hidden_size + P): the last hidden states of each sequence, and its pooled vector."""
    encoded = encoder(tokens)
    return torch.cat([encoded.last.flatten(1), encoded.pooled], dim=1)
