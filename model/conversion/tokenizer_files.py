"""The tokenizer of a converted folder. A single file holds no vocabulary, so it comes from another folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from denoised.model.bounded_files import MAX_TOKENIZER_BYTES, read_bounded
from denoised.model.checkpoints.text_to_image.pipeline_writing import save_json
from denoised.model.errors import CheckpointError
from denoised.model.text.tokenizer import END_TOKEN, START_TOKEN, TextTokenizer

PAD_OF_OPEN_CLIP = "!"  # id 0
VOCABULARY, MERGES = "vocab.json", "merges.txt"


@dataclass(frozen=True)
class Vocabulary:
    """CLIP's vocabulary.

    Attributes:
        ids: `vocab.json`.
        merges: `merges.txt`.
        size: number of token ids.
    """

    ids: str
    merges: str
    size: int

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """Read a tokenizer's folder, in either of its layouts.

        Raises:
            CheckpointError: if it is none of CLIP's format.
        """
        size = TextTokenizer.from_folder(folder).vocabulary_size
        if (folder / VOCABULARY).exists() and (folder / MERGES).exists():
            ids, merges = (read_bounded(folder / name, MAX_TOKENIZER_BYTES).decode() for name in (VOCABULARY, MERGES))
            return cls(ids, merges, size)
        model = json.loads(read_bounded(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)).get("model", {})
        if not isinstance(model, dict) or not model.get("vocab") or not model.get("merges"):
            raise CheckpointError(f"{folder / 'tokenizer.json'}: holds no vocabulary with merges")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return cls(json.dumps(model["vocab"], ensure_ascii=False), "\n".join(["#version: 0.2", *pairs]) + "\n", size)

    def save(self, folder: Path, length: int, *, open_clip: bool) -> None:
        """Write a tokenizer's folder.

        length: of a sequence, with start and end.
        open_clip: pad as OpenCLIP does.
        """
        folder.mkdir(parents=True)
        (folder / VOCABULARY).write_text(self.ids, encoding="utf-8")
        (folder / MERGES).write_text(self.merges, encoding="utf-8")
        special = {
            "bos_token": START_TOKEN,
            "eos_token": END_TOKEN,
            "unk_token": END_TOKEN,
            "pad_token": PAD_OF_OPEN_CLIP if open_clip else END_TOKEN,
        }
        save_json(folder / "special_tokens_map.json", special)
        settings = {**special, "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
        save_json(folder / "tokenizer_config.json", settings)


def check_vocabulary(folder: Path, vocabulary: Vocabulary, rows: int) -> None:
    """Check that a vocabulary is the one of a text encoder, as far as its size tells.

    Raises:
        CheckpointError: if it is not.
    """
    if vocabulary.size != rows:
        raise CheckpointError(f"{folder}: has {vocabulary.size} tokens, but the text encoder has {rows}")
