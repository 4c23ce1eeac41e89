"""Prompts as the hidden states that a text-conditioned U-Net attends to, cached by text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from denoised.model.backends.adapted_network import AdaptedNetwork
from denoised.model.networks.text_encoder.text_encoder import EncodedText, TextEncoder
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.text.chunks import PromptChunk, chunk_prompt, pad_chunks
from denoised.model.text.emphasis import emphasize
from denoised.model.text.tokenizer import TextTokenizer

# Tokens, skipped layers, and adapters with their weights.
Key = tuple[tuple[int, ...], int, tuple[tuple[str, float], ...]]

CACHED_CHUNKS = 256  # of Stable Diffusion 1, 77·768 numbers each: 60 MB in all


class ChunkEncoder:
    """A tokenizer and its text encoder. Not for two threads at a time.

    Each sequence of tokens is encoded by itself, so that its states do not depend on the prompts encoded with it.

    penultimate: the U-Net attends to the states before the last layer, without the final norm, as in SDXL; otherwise
        to those after the last layer, normalized.
    adapted: the encoder with the adapters that change it; None without any.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        encoder: TextEncoder,
        *,
        penultimate: bool = False,
        adapted: AdaptedNetwork | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._penultimate = penultimate
        self._adapted = adapted
        self._device = encoder.text_model.final_layer_norm.weight.device
        # Hidden states and the pooled vector, the most recent last.
        self._encoded: OrderedDict[Key, tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def length(self) -> int:
        """N, the tokens of a sequence."""
        return self._tokenizer.length

    @property
    def max_clip_skip(self) -> int:
        """How many layers can be left out, so that one remains."""
        return self._encoder.config.num_hidden_layers - (2 if self._penultimate else 1)

    def chunk(self, prompt: str, *, emphasis: bool) -> list[PromptChunk]:
        """The sequences of a prompt, at least one."""
        return chunk_prompt(self._tokenizer, prompt, emphasis=emphasis)

    @torch.inference_mode()
    def encode(
        self, chunks: list[PromptChunk], count: int, clip_skip: int, loras: Mapping[str, float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (count·N, hidden_size) of sequences of length N, and the pooled vector (P,) of the first.

        count: of sequences; there are at most as many chunks, and sequences without text follow them.
        clip_skip: how many more layers to leave out.
        loras: weights of adapters by name; those that do not change the encoder count for nothing.
        """
        own = self._adapted.relevant(loras or {}) if self._adapted is not None else {}
        encoded = [self._encode_chunk(chunk, clip_skip, own) for chunk in pad_chunks(self._tokenizer, chunks, count)]
        return torch.cat([states for states, _ in encoded]), encoded[0][1]

    def _encode_chunk(self, chunk: PromptChunk, clip_skip: int, loras: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        key = chunk.tokens, clip_skip, tuple(sorted(loras.items()))
        if key not in self._encoded:
            self._encoded[key] = self._evaluate(chunk.tokens, clip_skip, loras)
            if len(self._encoded) > CACHED_CHUNKS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        states, pooled = self._encoded[key]
        if chunk.has_emphasis:
            # After the cache: the same tokens with other weights share one evaluation.
            weights = torch.tensor([chunk.weights], device=self._device)
            states = emphasize(states[None], weights)[0]
        return states, pooled

    def _evaluate(self, tokens: tuple[int, ...], clip_skip: int, loras: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        encoded = self._run(torch.tensor([tokens], device=self._device), loras)  # tokens (1, N)
        if self._penultimate:
            # hidden_states[0] is the embedding, [−1] the last layer; SDXL reads [−2], without the final norm.
            states = encoded.hidden_states[-2 - clip_skip]
        elif clip_skip:
            # Stable Diffusion 1 and 2 read states after the final norm, whichever layer they come from.
            states = self._encoder.normalize(encoded.hidden_states[-1 - clip_skip])
        else:
            states = encoded.last
        # Copies: a view would keep the states of every layer in memory.
        return states[0].clone(), encoded.pooled[0].clone()

    def _run(self, tokens: Tensor, loras: Mapping[str, float]) -> EncodedText:
        if not loras:
            return self._encoder(tokens)
        assert self._adapted is not None
        with self._adapted.rows([loras], self._device):
            return self._encoder(tokens)


class PromptEncoder:
    """The text encoders of a model, one or two. Not for two threads at a time."""

    def __init__(self, encoders: Sequence[ChunkEncoder], *, zero_without_negative: bool = False) -> None:
        """zero_without_negative: without a negative prompt, guidance leads away from zeros, not from the empty prompt
        (`force_zeros_for_empty_prompt`)."""
        self._encoders = list(encoders)
        self._zero_without_negative = zero_without_negative

    @property
    def max_clip_skip(self) -> int:
        """How many layers a request may leave out."""
        return min(encoder.max_clip_skip for encoder in self._encoders)

    def encode(self, requests: Sequence[ConditioningRequest]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, K·N, C) of B prompts, and pooled vectors (B, P) of the last encoder.

        C is the sum of the encoders' channels, N the length of a sequence, and K the number of sequences of the longest
        prompt; the others are filled up with sequences without text.
        """
        chunked = [
            [encoder.chunk(request.prompt or "", emphasis=request.emphasis) for encoder in self._encoders]
            for request in requests
        ]
        longest = max(len(chunks) for each in chunked for chunks in each)
        encoded = [self._encode(request, each, longest) for request, each in zip(requests, chunked, strict=True)]
        return torch.stack([context for context, _ in encoded]), torch.stack([pooled for _, pooled in encoded])

    def _encode(
        self, request: ConditioningRequest, chunks: Sequence[list[PromptChunk]], count: int
    ) -> tuple[Tensor, Tensor]:
        pairs = zip(self._encoders, chunks, strict=True)
        parts = [encoder.encode(own, count, request.clip_skip, request.loras) for encoder, own in pairs]
        context, pooled = torch.cat([states for states, _ in parts], dim=-1), parts[-1][1]  # (K·N, C_1 + C_2), (P,)
        if self._zero_without_negative and request.is_negative and not request.prompt:
            return torch.zeros_like(context), torch.zeros_like(pooled)
        return context, pooled
