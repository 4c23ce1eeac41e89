"""Prompts as the hidden states that a text-conditioned U-Net attends to, cached by text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from denoised.model.networks.text_encoder import TextEncoder
from denoised.model.text.chunks import PromptChunk, chunk_prompt, pad_chunks
from denoised.model.text.tokenizer import TextTokenizer

CACHED_CHUNKS = 256  # of Stable Diffusion 1, 77·768 numbers each: 60 MB in all


class PromptEncoder:
    """Tokenizer and text encoder of a model. Not thread-safe: the engine's thread owns it.

    Each sequence of tokens is encoded by itself, so that its states do not depend on the prompts encoded with it.
    """

    def __init__(self, tokenizer: TextTokenizer, encoder: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._device = encoder.text_model.final_layer_norm.weight.device
        self._states: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()  # by tokens, the most recent last

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (B, K·N, hidden_size) of B prompts, where N is the tokenizer's length.

        K is the number of sequences of the longest prompt; the others are filled up with sequences without text.
        """
        chunks = [chunk_prompt(self._tokenizer, prompt) for prompt in prompts]
        longest = max(len(each) for each in chunks)
        padded = [pad_chunks(self._tokenizer, each, longest) for each in chunks]
        return torch.stack([torch.cat([self._encode_chunk(chunk) for chunk in each]) for each in padded])

    def _encode_chunk(self, chunk: PromptChunk) -> Tensor:
        """(N, hidden_size) the last hidden states of one sequence, after the final norm."""
        states = self._states.get(chunk.tokens)
        if states is None:
            states = self._encoder(torch.tensor([chunk.tokens], device=self._device)).last[0]
            self._states[chunk.tokens] = states
            if len(self._states) > CACHED_CHUNKS:
                self._states.popitem(last=False)
        self._states.move_to_end(chunk.tokens)
        return states
