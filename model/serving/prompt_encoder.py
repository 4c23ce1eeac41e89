"""Prompts as the hidden states that a text-conditioned U-Net attends to, cached by text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from denoised.model.backends.adapted_network import AdaptedNetwork
from denoised.model.networks.text_encoder import TextEncoder
from denoised.model.text.chunks import PromptChunk, chunk_prompt, pad_chunks
from denoised.model.text.tokenizer import TextTokenizer

Key = tuple[tuple[int, ...], tuple[tuple[str, float], ...]]  # tokens, and adapters with their weights

CACHED_CHUNKS = 256  # of Stable Diffusion 1, 77·768 numbers each: 60 MB in all


class PromptEncoder:
    """Tokenizer and text encoder of a model. Not thread-safe: the engine's thread owns it.

    Each sequence of tokens is encoded by itself, so that its states do not depend on the prompts encoded with it.

    adapted: the encoder with adapters; None without any.
    """

    def __init__(self, tokenizer: TextTokenizer, encoder: TextEncoder, adapted: AdaptedNetwork | None = None) -> None:
        self._tokenizer = tokenizer
        self._adapted = adapted
        self._encoder = encoder
        self._device = encoder.text_model.final_layer_norm.weight.device
        self._states: OrderedDict[Key, Tensor] = OrderedDict()  # the most recent last

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], loras: Sequence[Mapping[str, float]] | None = None) -> Tensor:
        """Hidden states (B, K·N, hidden_size) of B prompts, where N is the tokenizer's length.

        loras: of each prompt, the weights of the encoder's adapters by name.
        K is the number of sequences of the longest prompt; the others are filled up with sequences without text.
        """
        chunks = [chunk_prompt(self._tokenizer, prompt) for prompt in prompts]
        longest = max(len(each) for each in chunks)
        padded = [pad_chunks(self._tokenizer, each, longest) for each in chunks]
        rows = zip(padded, loras or [{}] * len(padded), strict=True)
        return torch.stack([torch.cat([self._encode_chunk(chunk, own) for chunk in each]) for each, own in rows])

    def _encode_chunk(self, chunk: PromptChunk, loras: Mapping[str, float]) -> Tensor:
        """(N, hidden_size) the last hidden states of one sequence, after the final norm."""
        key = chunk.tokens, tuple(sorted(loras.items()))
        states = self._states.get(key)
        if states is None:
            states = self._evaluate(torch.tensor([chunk.tokens], device=self._device), loras)
            self._states[key] = states
            if len(self._states) > CACHED_CHUNKS:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        return states

    def _evaluate(self, tokens: Tensor, loras: Mapping[str, float]) -> Tensor:
        if not loras:
            return self._encoder(tokens).last[0]
        assert self._adapted is not None
        with self._adapted.rows([loras], self._device):
            return self._encoder(tokens).last[0]
