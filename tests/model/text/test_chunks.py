"""Prompts as sequences of 77 tokens with weights, and the weights applied to hidden states."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from denoised.model.text.chunks import chunk_prompt, pad_chunks
from denoised.model.text.emphasis import emphasize
from denoised.model.text.tokenizer import SpecialTokens, TextTokenizer

WORDS = ("pad", "a", "b", "c", "start", "end", "unknown", "(", ")")
PAD, A, B, C, START, END, UNKNOWN = range(7)


@pytest.fixture
def tokenizer() -> TextTokenizer:
    """One token for each word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextTokenizer(words, SpecialTokens(START, END, PAD))


def test_a_short_prompt_is_one_chunk(tokenizer: TextTokenizer) -> None:
    (chunk,) = chunk_prompt(tokenizer, "a b c")
    assert chunk.tokens == (START, A, B, C, END, *[PAD] * 72)
    assert chunk.weights == (1.0,) * 77
    assert not chunk.has_emphasis


def test_an_empty_prompt_is_one_empty_chunk(tokenizer: TextTokenizer) -> None:
    (chunk,) = chunk_prompt(tokenizer, "", emphasis=True)
    assert chunk.tokens == (START, END, *[PAD] * 75)


@pytest.mark.parametrize(("words", "chunks"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_a_long_prompt_is_cut_after_every_75_tokens(words: int, chunks: int, tokenizer: TextTokenizer) -> None:
    cut = chunk_prompt(tokenizer, " ".join(["a"] * words))
    assert len(cut) == chunks
    assert all(len(chunk.tokens) == 77 and chunk.tokens[0] == START and END in chunk.tokens for chunk in cut)
    assert sum(chunk.tokens.count(A) for chunk in cut) == words


def test_weights_belong_to_tokens(tokenizer: TextTokenizer) -> None:
    (chunk,) = chunk_prompt(tokenizer, "a (b c:1.5) a", emphasis=True)
    assert chunk.tokens[:6] == (START, A, B, C, A, END)
    assert chunk.weights == (1.0, 1.0, 1.5, 1.5, *[1.0] * 73)
    assert chunk.has_emphasis


def test_without_emphasis_brackets_and_break_are_text(tokenizer: TextTokenizer) -> None:
    (chunk,) = chunk_prompt(tokenizer, "( a ) BREAK b")
    assert chunk.tokens[:7] == (START, 7, A, 8, UNKNOWN, B, END)


def test_break_starts_a_chunk(tokenizer: TextTokenizer) -> None:
    first, second = chunk_prompt(tokenizer, "a BREAK b", emphasis=True)
    assert (first.tokens[:3], second.tokens[:3]) == ((START, A, END), (START, B, END))


def test_chunks_are_padded_with_empty_prompts(tokenizer: TextTokenizer) -> None:
    chunks = pad_chunks(tokenizer, chunk_prompt(tokenizer, "a"), 3)
    assert [chunk.tokens[1] for chunk in chunks] == [A, END, END]
    assert pad_chunks(tokenizer, chunks, 3) == chunks


def test_emphasis_keeps_the_mean_of_each_sequence() -> None:
    states = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.5, 1.0]])
    found = emphasize(states, weights)
    assert torch.equal(found[0], states[0])
    torch.testing.assert_close(found.mean(dim=(1, 2)), states.mean(dim=(1, 2)))
    ratio = found[1, 1] / states[1, 1] / (found[1, 0] / states[1, 0])
    torch.testing.assert_close(ratio, torch.full((5,), 2.0))
    assert torch.equal(emphasize(states[1:2], weights[1:2]), found[1:2])
