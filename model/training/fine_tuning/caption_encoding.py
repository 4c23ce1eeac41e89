"""Captions as the hidden states that a U-Net attends to in fine-tuning, from frozen text encoders or trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.prompt_encoder import PromptEncoder
from denoised.model.text.chunks import chunk_prompt, pad_chunks
from denoised.model.text.tokenizer import TextTokenizer


class CaptionEncoder(Protocol):
    """Encodes captions."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The text encoders that can be trained; none if they stay as they are."""
        ...

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, M, C) of B captions, and pooled vectors (B, P) of the last encoder."""
        ...


class FrozenCaptionEncoder:
    """Encoders that stay as they are, with the kernels and the cache of serving."""

    networks: Sequence[nn.Module] = ()

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `CaptionEncoder`."""
        return self._prompts.encode([ConditioningRequest(prompt=caption) for caption in captions])


class TrainedCaptionEncoder:
    """Encoders with gradients; the states are those that serving computes."""

    def __init__(self, pipeline: TextPipeline, device: str) -> None:
        self.networks: Sequence[TextEncoder] = [encoder.eval().to(device) for encoder in pipeline.text_encoders]
        self._tokenizers = pipeline.tokenizers
        self._penultimate = pipeline.is_xl
        self._device = device

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `CaptionEncoder`."""
        encoded = [
            self._encode(tokenizer, network, captions)
            for tokenizer, network in zip(self._tokenizers, self.networks, strict=True)
        ]
        return torch.cat([states for states, _ in encoded], dim=-1), encoded[-1][1]

    def _encode(self, tokenizer: TextTokenizer, network: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, K·N, C) of one encoder, where K is the number of chunks of the longest caption."""
        chunked = [chunk_prompt(tokenizer, caption) for caption in captions]
        longest = max(map(len, chunked))
        rows = [chunk.tokens for chunks in chunked for chunk in pad_chunks(tokenizer, chunks, longest)]
        encoded = network(torch.tensor(rows, device=self._device))
        states = encoded.hidden_states[-2] if self._penultimate else encoded.last  # (B·K, N, C)
        # As in serving, the pooled vector is that of a caption's first chunk.
        return states.reshape(len(captions), -1, states.shape[-1]), encoded.pooled[::longest]
