"""Prompts of any length as token sequences of one length, each token with a weight.

An encoder reads 77 tokens. A longer prompt is cut into chunks of 75 tokens, each with a start and an end token of its
own. The hidden states of the chunks are joined, so that the U-Net attends to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.text.prompt import WeightedText, parse_emphasis
from denoised.model.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class PromptChunk:
    """One sequence for the encoder.

    Attributes:
        tokens: `TextTokenizer.length` ids: start, text, end, padding.
        weights: the emphasis of each token; 1 for start, end and padding.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def has_emphasis(self) -> bool:
        """Whether some token has a weight other than 1."""
        return any(weight != 1.0 for weight in self.weights)


def chunk_prompt(tokenizer: TextTokenizer, prompt: str, *, emphasis: bool = False) -> list[PromptChunk]:
    """The chunks of a prompt, at least one.

    emphasis: read the syntax of `model.text.prompt`; otherwise brackets and BREAK are text.
    """
    sequences = parse_emphasis(prompt) if emphasis else [[WeightedText(prompt, 1.0)]]
    return [chunk for parts in sequences for chunk in _chunk(tokenizer, parts)]


def pad_chunks(tokenizer: TextTokenizer, chunks: list[PromptChunk], count: int) -> list[PromptChunk]:
    """Chunks followed by those of empty prompts, `count` in all.

    A prompt and its negative prompt are evaluated at one length.
    """
    return chunks + _chunk(tokenizer, []) * (count - len(chunks))


def _chunk(tokenizer: TextTokenizer, parts: list[WeightedText]) -> list[PromptChunk]:
    pairs = [(token, part.weight) for part in parts for token in tokenizer.token_ids(part.text)]
    starts = range(0, max(len(pairs), 1), tokenizer.capacity)
    return [_frame(tokenizer, pairs[start : start + tokenizer.capacity]) for start in starts]


def _frame(tokenizer: TextTokenizer, pairs: list[tuple[int, float]]) -> PromptChunk:
    weights = [1.0, *(weight for _, weight in pairs)]
    tokens = tokenizer.frame([token for token, _ in pairs])
    return PromptChunk(tuple(tokens), tuple(weights + [1.0] * (tokenizer.length - len(weights))))
