"""Learn a byte-pair encoding from captions, and write it in CLIP's format.

The vocabulary holds 256 bytes, the same bytes at the end of a word, one token for each merge, and the start and end
token, in CLIP's order (Radford et al. 2021, arXiv:2103.00020, section 2.4). Byte-level tokens spell any text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers, trainers

from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.text.tokenizer import END_TOKEN, MAX_LENGTH, START_TOKEN, build_clip_tokenizer

WORD_END = "</w>"
VOCABULARY_SIZE = 2_250
VOCABULARY_FILE, MERGES_FILE, SETTINGS_FILE = "vocab.json", "merges.txt", "tokenizer_config.json"


def learn_merges(texts: Iterable[str], size: int = VOCABULARY_SIZE) -> list[tuple[str, str]]:
    """The pairs to merge, in order: at most as many as a vocabulary of `size` tokens has room for.

    texts: equal texts may be given more than once, to count for more.
    """
    tokenizer = build_clip_tokenizer({}, [], END_TOKEN)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix=WORD_END,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    room = size - len(_fixed_tokens())
    return [(first, second) for first, second in merges][:room]


def build_vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The ids of all tokens, in CLIP's order."""
    *characters, start, end = _fixed_tokens()
    # A dictionary, because two merges may spell the same token, which has one id.
    merged = dict.fromkeys(first + second for first, second in merges)
    return {token: number for number, token in enumerate([*characters, *merged, start, end])}


def save_tokenizer(folder: Path, merges: list[tuple[str, str]], length: int = MAX_LENGTH) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    length: of a framed sequence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps(build_vocabulary(merges), ensure_ascii=False)
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    tokens = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "pad_token": END_TOKEN, "unk_token": END_TOKEN}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **tokens}
    write_text_atomically(folder / VOCABULARY_FILE, vocabulary + "\n")
    write_text_atomically(folder / MERGES_FILE, "\n".join(lines) + "\n")
    write_text_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def read_merges(folder: Path) -> list[tuple[str, str]]:
    """The merges that `save_tokenizer` wrote."""
    lines = (folder / MERGES_FILE).read_text(encoding="utf-8").splitlines()[1:]
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines)]


def _fixed_tokens() -> list[str]:
    """Every token but those of merges: bytes, bytes at the end of a word, start and end."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*characters, *(character + WORD_END for character in characters), START_TOKEN, END_TOKEN]
