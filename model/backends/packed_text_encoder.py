"""A text encoder with the kernels of `model.backends.packed`: a prompt gets the same states in a batch of any size."""

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
    packed, tokens = pack(deepcopy(encoder)), reference_tokens(encoder)
    try:
        each = torch.cat([reference_states(packed, own) for own in tokens.split(1)])
        own = torch.cat([reference_states(encoder, own) for own in tokens.split(1)])
        check_packed("text encoder", own, each, reference_states(packed, tokens))
    except KernelError as error:
        return str(error)
    encoder.to("meta")  # frees the weights: the packed layers have copies of their own
    return packed


def reference_tokens(encoder: TextEncoder, count: int = COMPARED_SEQUENCES) -> Tensor:
    """(count, N) random tokens on the encoder's device."""
    length = min(COMPARED_TOKENS, encoder.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(encoder.config.vocab_size, (count, length), generator=generator)
    return tokens.to(encoder.text_model.final_layer_norm.weight.device)


@torch.inference_mode()
def reference_states(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """(B, N·hidden_size + P) float32: the last hidden states of each sequence, and its pooled vector."""
    encoded = encoder(tokens)
    return torch.cat([encoded.last.flatten(1), encoded.pooled], dim=1).float()
