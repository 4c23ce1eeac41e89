"""Prompts as the hidden states that a text-conditioned U-Net attends to, cached by text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from denoised.model.backends.adapted_network import AdaptedNetwork
from denoised.model.backends.fixed_batch import fill
from denoised.model.backends.text_encoder_selection import EncoderSelection
from denoised.model.networks.text_encoder.text_encoder import EncodedText
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.text.chunks import PromptChunk, chunk_prompt, pad_chunks
from denoised.model.text.emphasis import emphasize
from denoised.model.text.tokenizer import TextTokenizer

CACHED_CHUNKS = 256  # of Stable Diffusion 1, 77·768 numbers each: 60 MB in all


class ChunkKey(NamedTuple):
    """What the states of a sequence depend on.

    Attributes:
        tokens: (N,) of the sequence.
        clip_skip: How many more layers are left out.
        loras: The adapters that change the encoder, with their weights, by name.
    """

    tokens: tuple[int, ...]
    clip_skip: int
    loras: tuple[tuple[str, float], ...]


class ChunkedPrompt(NamedTuple):
    """A prompt as one encoder reads it.

    Attributes:
        chunks: Its sequences.
        clip_skip: How many more layers are left out.
        loras: Weights of adapters by name; those that do not change the encoder count for nothing.
    """

    chunks: Sequence[PromptChunk]
    clip_skip: int
    loras: Mapping[str, float]


States = tuple[Tensor, Tensor]  # hidden states (N, hidden_size) and the pooled vector (P,), float32


class ChunkEncoder:
    """A tokenizer and its text encoder. Not for two threads at a time.

    The states of a sequence do not depend on those that are encoded with it.

    penultimate: the U-Net attends to the states before the last layer, without the final norm, as in SDXL; otherwise
        to those after the last layer, normalized.
    adapted: the encoder with the adapters that change it; None without any.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        selection: EncoderSelection,
        *,
        penultimate: bool = False,
        adapted: AdaptedNetwork | None = None,
    ) -> None:
        self.selection = selection
        self._tokenizer = tokenizer
        self._encoder = encoder = selection.network
        self._penultimate = penultimate
        self._adapted = adapted
        self._device = encoder.text_model.final_layer_norm.weight.device
        self._encoded: OrderedDict[ChunkKey, States] = OrderedDict()  # the most recent last

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
    def encode(self, prompts: Sequence[ChunkedPrompt], count: int) -> list[tuple[Tensor, Tensor]]:
        """Of each prompt: hidden states (count·N, hidden_size), and the pooled vector (P,) of its first sequence.

        count: of sequences; a prompt has at most as many chunks, and sequences without text follow them.
        """
        padded = [pad_chunks(self._tokenizer, list(prompt.chunks), count) for prompt in prompts]
        keys = [[self._key(chunk, prompt) for chunk in chunks] for chunks, prompt in zip(padded, prompts, strict=True)]
        # Every sequence once, whatever the number of prompts that contain it.
        known = self._look_up([key for own in keys for key in own])
        encoded = []
        for chunks, own in zip(padded, keys, strict=True):
            states = [self._emphasized(chunk, known[key][0]) for chunk, key in zip(chunks, own, strict=True)]
            # count sequences of (N, hidden_size) → (count·N, hidden_size).
            encoded.append((torch.cat(states), known[own[0]][1]))
        return encoded

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[ChunkedPrompt]) -> None:
        """Encode the sequences of several prompts that are not cached yet."""
        self._look_up([self._key(chunk, prompt) for prompt in prompts for chunk in prompt.chunks])

    def _key(self, chunk: PromptChunk, prompt: ChunkedPrompt) -> ChunkKey:
        own = self._adapted.relevant(prompt.loras) if self._adapted is not None else {}
        return ChunkKey(chunk.tokens, prompt.clip_skip, tuple(sorted(own.items())))

    def _look_up(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, States]:
        """The states of sequences, those that are not cached encoded together."""
        known = {key: self._encoded[key] for key in keys if key in self._encoded}
        # Without duplicates, in the order of the prompts.
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        for batch in self._batches(missing):
            known |= dict(zip(batch, self._evaluate(batch), strict=True))
        self._cache(known)
        return known

    def _batches(self, keys: Sequence[ChunkKey]) -> Sequence[Sequence[ChunkKey]]:
        """The sequences of each evaluation. Adapters next to kernels that depend on the batch take one at a time."""
        alone = [key for key in keys if key.loras and not self.selection.packed]
        together, size = [key for key in keys if key not in alone], self.selection.batch
        return [together[start : start + size] for start in range(0, len(together), size)] + [[key] for key in alone]

    def _cache(self, used: Mapping[ChunkKey, States]) -> None:
        for key, states in used.items():
            self._encoded[key] = states
            self._encoded.move_to_end(key)
        while len(self._encoded) > CACHED_CHUNKS:
            self._encoded.popitem(last=False)

    def _emphasized(self, chunk: PromptChunk, states: Tensor) -> Tensor:
        if not chunk.has_emphasis:
            return states
        # After the cache: the same tokens with other weights share one evaluation.
        weights = torch.tensor([chunk.weights], device=self._device)
        return emphasize(states[None], weights)[0]

    def _evaluate(self, keys: Sequence[ChunkKey]) -> list[States]:
        """Encode sequences in one evaluation."""
        encoded = self._run(torch.tensor([key.tokens for key in keys], device=self._device), keys)
        # Copies: a view would keep the states of every layer in memory.
        return [
            (_copied(self._states(encoded, row, key.clip_skip)), _copied(encoded.pooled[row]))
            for row, key in enumerate(keys)
        ]

    def _states(self, encoded: EncodedText, row: int, clip_skip: int) -> Tensor:
        """(N, hidden_size), those of a sequence that the U-Net attends to."""
        if self._penultimate:
            # hidden_states[0] is the embedding, [−1] the last layer; SDXL reads [−2], without the final norm.
            return encoded.hidden_states[-2 - clip_skip][row]
        if clip_skip:
            # Stable Diffusion 1 and 2 read states after the final norm, whichever layer they come from.
            return self._encoder.normalize(encoded.hidden_states[-1 - clip_skip][row : row + 1])[0]
        return encoded.last[row]

    def _run(self, tokens: Tensor, keys: Sequence[ChunkKey]) -> EncodedText:
        if not any(key.loras for key in keys):
            encoded: EncodedText = self._encoder(
                fill(tokens, self.selection.batch) if self.selection.filled else tokens
            )
            return encoded
        assert self._adapted is not None
        with self._adapted.rows([dict(key.loras) for key in keys], self._device):
            return self._encoder(tokens)


def _copied(states: Tensor) -> Tensor:
    return states.to(torch.float32, copy=True)


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

    @property
    def kernels(self) -> str:
        """The name of the encoders' kernels in `numerics`; of two, that of those which take fewer sequences at once."""
        return min((encoder.selection for encoder in self._encoders), key=lambda each: each.batch).kernels

    @property
    def refused(self) -> str | None:
        """Why an encoder is in float32 although another precision was asked for; None if none is."""
        return next((each.selection.refused for each in self._encoders if each.selection.refused is not None), None)

    def encode(self, requests: Sequence[ConditioningRequest]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, K·N, C) of B prompts, and pooled vectors (B, P) of the last encoder.

        C is the sum of the encoders' channels, N the length of a sequence, and K the number of sequences of the longest
        prompt; the others are filled up with sequences without text.
        """
        chunked = [self._chunk(request) for request in requests]
        # K, the same for all encoders: their states are joined along the channels.
        longest = max(len(prompt.chunks) for each in chunked for prompt in each)
        # By request → by encoder, because an encoder takes all prompts at once.
        columns = zip(self._encoders, zip(*chunked, strict=True), strict=True)
        encoded = [encoder.encode(prompts, longest) for encoder, prompts in columns]
        joined = [
            self._join(request, parts) for request, parts in zip(requests, zip(*encoded, strict=True), strict=True)
        ]
        return torch.stack([context for context, _ in joined]), torch.stack([pooled for _, pooled in joined])

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        """Encode the prompts of several jobs together, each as long as it is, so that `encode` finds them cached."""
        chunked = [self._chunk(request) for request in requests]
        for encoder, prompts in zip(self._encoders, zip(*chunked, strict=True), strict=True):
            encoder.prepare(prompts)

    def _chunk(self, request: ConditioningRequest) -> list[ChunkedPrompt]:
        """The prompt of a request for each encoder."""
        chunks = [encoder.chunk(request.prompt or "", emphasis=request.emphasis) for encoder in self._encoders]
        return [ChunkedPrompt(own, request.clip_skip, request.loras) for own in chunks]

    def _join(self, request: ConditioningRequest, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One request's hidden states of all encoders, side by side, and the pooled vector of the last."""
        # (K·N, C_1 + C_2), as in SDXL (Podell et al. 2023, section 2.1).
        context, pooled = torch.cat([states for states, _ in parts], dim=-1), parts[-1][1]
        if self._zero_without_negative and request.is_negative and not request.prompt:
            return torch.zeros_like(context), torch.zeros_like(pooled)
        return context, pooled
