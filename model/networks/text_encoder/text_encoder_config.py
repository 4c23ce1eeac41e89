"""The settings of CLIP's text encoder: the keys of `config.json`, checked.

Keys and defaults equal those of transformers' `CLIPTextConfig`. A config that asks for something
`model.networks.text_encoder.text_encoder` does not implement is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from denoised.model.errors import CheckpointError
from denoised.model.networks.config_checks import (
    MAX_COUNT,
    ValueCheck,
    check_values,
    is_integer,
    is_positive,
    known_values,
)

MAX_ENCODER_LAYERS = 100  # OpenCLIP's largest encoder has 32
MAX_VOCABULARY = 1_000_000  # CLIP has 49,408 tokens

# Keys that describe the file, the initialization or training, not the function.
IGNORED_KEYS = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dropout",
        "dtype",
        "gradient_checkpointing",
        "initializer_factor",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
    }
)

TEXT_ENCODER_CHECKS: tuple[ValueCheck, ...] = (
    ValueCheck(
        (
            "hidden_size",
            "intermediate_size",
            "projection_dim",
            "num_attention_heads",
            "max_position_embeddings",
        ),
        f"not a whole number from 1 to {MAX_COUNT}",
        is_integer,
    ),
    ValueCheck(
        ("num_hidden_layers",),
        f"not a whole number from 1 to {MAX_ENCODER_LAYERS}",
        lambda v: is_integer(v, most=MAX_ENCODER_LAYERS),
    ),
    ValueCheck(
        ("vocab_size",),
        f"not a whole number from 1 to {MAX_VOCABULARY}",
        lambda v: is_integer(v, most=MAX_VOCABULARY),
    ),
    ValueCheck(
        ("eos_token_id",),
        f"not a whole number from 0 to {MAX_VOCABULARY}",
        lambda v: is_integer(v, minimum=0, most=MAX_VOCABULARY),
    ),
    ValueCheck(("layer_norm_eps",), "not a number over 0", is_positive),
)
SUPPORTED_TEXT_ENCODER_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("quick_gelu", "gelu"),
    "model_type": ("clip_text_model",),
    "use_attention_mask": (None, False),
}

# The end token that configs name although their tokenizers have another one; see `TextEncoder.end_positions`.
LEGACY_EOS_TOKEN_ID = 2


@dataclass(frozen=True)
class TextEncoderConfig:
    """The keys of `config.json`, with transformers' defaults for those left out.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: channels of the hidden states.
        intermediate_size: channels inside the feed-forward layers.
        projection_dim: channels of the projected pooled vector, for encoders that have a projection.
        num_hidden_layers: transformer layers.
        num_attention_heads: of each layer; they divide hidden_size.
        max_position_embeddings: the longest sequence, 77 in all published encoders.
        hidden_act: "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP).
        layer_norm_eps: ε under the square root of every norm.
        eos_token_id: the end token, whose hidden state is the pooled vector; 2 in configs written before
            transformers 4.31, whatever the tokenizer's end token is.
        model_type: "clip_text_model".
        use_attention_mask: null or false; padding is visible to the encoder, as Stable Diffusion was trained.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    model_type: str = "clip_text_model"
    use_attention_mask: bool | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TextEncoderConfig:
        """The config of a parsed `config.json`; keys that do not change the function are left out.

        Raises:
            CheckpointError: for a key or a value that is not understood, by name.
        """
        config = cls(**known_values(cls, raw, IGNORED_KEYS))
        check_values(config, TEXT_ENCODER_CHECKS, SUPPORTED_TEXT_ENCODER_VALUES)
        if config.hidden_size % config.num_attention_heads:
            raise CheckpointError(
                f"hidden_size = {config.hidden_size} is not a multiple of num_attention_heads = "
                f"{config.num_attention_heads}"
            )
        if config.eos_token_id >= config.vocab_size:
            raise CheckpointError(
                f"eos_token_id = {config.eos_token_id} is outside the vocabulary (vocab_size = {config.vocab_size})"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The keys of `config.json`; those that are null are left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
