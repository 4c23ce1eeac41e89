"""CLIP's text encoder, with the tensor names of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.

This module knows nothing of tokenizers, prompts or files.
Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.networks.text_encoder.text_encoder_config import LEGACY_EOS_TOKEN_ID, TextEncoderConfig
from denoised.model.networks.unet.embeddings import Embedding


@dataclass(frozen=True)
class EncodedText:
    """What an encoder makes of B token sequences of length N.

    Attributes:
        hidden_states: one (B, N, hidden_size) for the embeddings and one after each layer, before the final norm.
        last: (B, N, hidden_size), the last hidden state after the final norm.
        pooled: (B, hidden_size) of the end token after the final norm; (B, projection_dim) with a projection.
    """

    hidden_states: tuple[Tensor, ...]
    last: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """Token ids → hidden states and a pooled vector.

    projected: project the pooled vector, as `CLIPTextModelWithProjection` does.
    """

    def __init__(self, config: TextEncoderConfig, *, projected: bool) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False) if projected else None

    def forward(self, tokens: Tensor) -> EncodedText:
        """tokens: (B, N) token ids, N up to `max_position_embeddings`, with an end token in each sequence."""
        states = self.text_model(tokens)
        last = self.normalize(states[-1])
        rows = torch.arange(len(tokens), device=tokens.device)
        pooled = last[rows, self.end_positions(tokens)]  # (B, hidden_size)
        if self.text_projection is not None:
            # (B, projection_dim): into the space that texts and pictures share (Radford et al. 2021, figure 3).
            pooled = self.text_projection(pooled)
        return EncodedText(states, last, pooled)

    def normalize(self, states: Tensor) -> Tensor:
        """The final norm, for the hidden states of an earlier layer ("CLIP skip"): (B, N, hidden_size) → the same."""
        return self.text_model.final_layer_norm(states)

    def end_positions(self, tokens: Tensor) -> Tensor:
        """The position (B,) of the first end token of each sequence (B, N).

        Configs written before transformers 4.31 name token 2 whatever the end token is. The end token then is the
        highest id of the sequence, which holds for CLIP's vocabulary.
        """
        if self.config.eos_token_id == LEGACY_EOS_TOKEN_ID:
            return tokens.argmax(dim=-1)  # the first of several equal ids
        # argmax returns the first maximum, so padding with the end token does not move the position.
        return (tokens == self.config.eos_token_id).int().argmax(dim=-1)


class TextTransformer(nn.Module):
    """Embeddings and layers. The final norm is applied by `TextEncoder`, to the layer that it reads."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embeddings = TokenEmbeddings(config)
        self.encoder = EncoderLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens: (B, N). Returns num_hidden_layers + 1 hidden states (B, N, hidden_size)."""
        return self.encoder(self.embeddings(tokens))


class TokenEmbeddings(nn.Module):
    """A learned vector of each token plus one of its position: (B, N) → (B, N, hidden_size)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.position_embedding.weight[: tokens.shape[1]]  # (N, hidden_size)
        return self.token_embedding(tokens) + positions


class EncoderLayers(nn.Module):
    """The transformer layers, one after the other."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (B, N, hidden_size). Returns the input and the output of each layer."""
        states = [x]  # all are kept: CLIP skip and SDXL read one before the last
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class EncoderLayer(nn.Module):
    """Causal self-attention and a feed-forward network, each after a norm, and added to its input."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CausalAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = TextFeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        # Norms before the sub-layers (pre-norm), as in GPT-2.
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CausalAttention(nn.Module):
    """Attention of each token to itself and those before it: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.attend = CausalDotProduct()

    def forward(self, x: Tensor) -> Tensor:
        # Each (B, heads, N, D).
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        # The mask hides later tokens, so the end token alone has seen the whole text.
        mixed = self.attend(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, heads, N, D) → (B, N, heads·D)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads·D) → (B, heads, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CausalDotProduct(nn.Module):
    """softmax(q·kᵀ/√D + mask)·v of queries, keys and values, each (B, heads, N, D); returns the same shape."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class TextFeedForward(nn.Module):
    """Two linear layers around an activation: (B, N, hidden_size) → the same."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.activation = QuickGelu() if config.hidden_act == "quick_gelu" else nn.GELU()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # intermediate_size between them


class QuickGelu(nn.Module):
    """x·σ(1.702·x), elementwise, the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def text_encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of this module.

    transformers 5 writes `CLIPTextModel` without the prefix `text_model.`; files of transformers before 4.31 also hold
    `position_ids`, which are not weights.
    """
    renamed = {name: text_encoder_tensor_name(name) for name in tensors}
    return {own: tensors[name] for name, own in renamed.items() if own is not None}


def text_encoder_tensor_name(name: str) -> str | None:
    """The name in this module of a tensor in a file; None for one that is not a weight."""
    if name.endswith("embeddings.position_ids"):
        return None
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
