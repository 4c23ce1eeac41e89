"""The learned vocabulary: CLIP's format, and the same ids in transformers as here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from denoised.model.text.tokenizer import END_TOKEN, START_TOKEN, TextTokenizer
from denoised.model.training.emoji.captions import caption_corpus, full_caption
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from denoised.model.training.text_to_image.vocabulary import (
    build_vocabulary,
    learn_merges,
    read_merges,
    save_tokenizer,
)

TEXTS = [
    "goat, fluent style, on a teal background",
    "",
    "  A GOAT,\nin Fluent   style!  ",
    "don't; it's 100 % über-œuvre 🐐 中文",
    "naïve façade ①②",
    "goat " * 100,
]


@pytest.fixture(scope="module")
def merges(pictures: EmojiPictures) -> list[tuple[str, str]]:
    return learn_merges(caption_corpus(pictures))


@pytest.fixture(scope="module")
def folder(merges: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path, merges)
    return path


def test_a_vocabulary_is_in_the_order_of_clips(merges: list[tuple[str, str]]) -> None:
    vocabulary = build_vocabulary(merges)
    tokens = list(vocabulary)
    assert list(vocabulary.values()) == list(range(len(tokens)))
    assert set(tokens[:256]) == set(pre_tokenizers.ByteLevel.alphabet())
    assert tokens[256:512] == [f"{character}</w>" for character in tokens[:256]]
    assert tokens[512:-2] == list(dict.fromkeys(first + second for first, second in merges))
    assert tokens[-2:] == [START_TOKEN, END_TOKEN]
    assert "background</w>" in vocabulary
    assert "goat</w>" in vocabulary


def test_a_vocabulary_is_no_larger_than_asked(pictures: EmojiPictures) -> None:
    merges = learn_merges(caption_corpus(pictures), size=530)
    assert len(build_vocabulary(merges)) == 530


def test_learning_twice_gives_the_same_merges(pictures: EmojiPictures, merges: list[tuple[str, str]]) -> None:
    assert learn_merges(caption_corpus(pictures)) == merges


def test_ids_equal_those_of_transformers(folder: Path, pictures: EmojiPictures) -> None:
    theirs, ours = CLIPTokenizer.from_pretrained(folder), TextTokenizer.from_folder(folder)
    assert theirs.model_max_length == ours.length == 77
    assert len(theirs) == ours.vocabulary_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.special.start,
        ours.special.end,
        ours.special.pad,
    )
    for text in [*TEXTS, *(full_caption(pictures, k) for k in range(0, pictures.combinations, 7))]:
        expected = theirs(text, padding="max_length", truncation=True, max_length=77).input_ids
        assert ours.encode(text) == expected, text


def test_the_end_token_is_the_last_id(folder: Path) -> None:
    """`TextEncoder.end_positions` and older programs look for the highest id of a sequence."""
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.special.end == tokenizer.vocabulary_size - 1


def test_the_words_of_captions_are_single_tokens(folder: Path) -> None:
    ids = TextTokenizer.from_folder(folder).token_ids("goat, fluent style, on a teal background")
    assert len(ids) == 9, "seven words and two commas"


def test_the_files_are_those_of_clip(folder: Path, merges: list[tuple[str, str]]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert (folder / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == build_vocabulary(merges)
    assert read_merges(folder) == merges
