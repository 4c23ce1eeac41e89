"""CLIP's tokenizer: text → token ids, by byte-pair encoding (Radford et al. 2021, arXiv:2103.00020, section 2.4).

A folder holds either `tokenizer.json` or `vocab.json` and `merges.txt`; `tokenizer_config.json` or
`special_tokens_map.json` name the special tokens. The ids equal those of transformers' `CLIPTokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from denoised.model.errors import CheckpointError

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # of all published CLIP encoders, start and end token included
# Special tokens, contractions, runs of letters, single digits, runs of anything else but spaces.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that frame a sequence.

    Attributes:
        start, end: the first and last token of a text.
        pad: fills the sequence after the end token. It is the end token in Stable Diffusion 1 and in SDXL's first
            encoder, and "!" (id 0) in Stable Diffusion 2 and SDXL's second.
    """

    start: int
    end: int
    pad: int


class TextTokenizer:
    """Text → token ids.

    tokenizer: of the `tokenizers` library, without truncation and padding of its own.
    special: the ids that frame a sequence.
    length: of a framed sequence.
    """

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens, length: int = MAX_LENGTH) -> None:
        self._tokenizer = tokenizer
        self.special = special
        self.length = length

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read a tokenizer's folder.

        Raises:
            CheckpointError: if files are missing, not JSON or not a tokenizer's, or special tokens are unknown.
        """
        settings = _read_settings(folder)
        names = {key: _token_content(settings.get(key, default)) for key, default in DEFAULT_TOKENS.items()}
        tokenizer = _load_tokenizer(folder, names)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = {}
        for key, name in names.items():
            number = tokenizer.token_to_id(name)
            if number is None:
                raise CheckpointError(f"{folder}: {key} = {name!r} is not in the vocabulary")
            ids[key] = number
        length = settings.get("model_max_length", MAX_LENGTH)
        if type(length) is not int or not 3 <= length <= 10_000:
            raise CheckpointError(f"{folder}: model_max_length = {length!r} is not a whole number from 3 to 10000")
        return cls(tokenizer, SpecialTokens(ids["bos_token"], ids["eos_token"], ids["pad_token"]), length)

    @property
    def capacity(self) -> int:
        """Token ids of a text in one sequence, between the start and the end token."""
        return self.length - 2

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text of any length, without start and end token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def frame(self, ids: list[int]) -> list[int]:
        """`length` ids: start, ids, end, padding.

        ids: at most `capacity` ids.
        """
        assert len(ids) <= self.capacity, f"{len(ids)} token ids do not fit into {self.capacity}"
        padding = [self.special.pad] * (self.capacity - len(ids))
        return [self.special.start, *ids, self.special.end, *padding]

    def encode(self, text: str) -> list[int]:
        """The framed ids of a text, cut off after `capacity` ids as diffusers' pipelines do."""
        return self.frame(self.token_ids(text)[: self.capacity])


# transformers' defaults for tokens that a folder does not name.
DEFAULT_TOKENS = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "pad_token": END_TOKEN, "unk_token": END_TOKEN}


def build_clip_tokenizer(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """CLIP's tokenizer of a vocabulary in its format: words end in `</w>`, bytes are printable characters."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    # The stubs of `tokenizers` declare these properties read-only.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _load_tokenizer(folder: Path, names: Mapping[str, str]) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.exists():
            return Tokenizer.from_file(str(whole))
        if vocabulary.exists() and merges.exists():
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            tokenizer = build_clip_tokenizer(ids, _read_merges(merges), names["unk_token"])
            tokenizer.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names.values())])
            return tokenizer
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
    # `tokenizers` raises Exception itself for a file that it does not understand.
    except Exception as error:
        raise CheckpointError(f"{folder}: not a tokenizer: {error}") from error
    raise CheckpointError(f"{folder}: there is neither tokenizer.json nor vocab.json with merges.txt")


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of `merges.txt` in order; its first line is a version."""
    merges = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        first, space, second = line.partition(" ")
        if space:
            merges.append((first, second))
    return merges


def _read_settings(folder: Path) -> dict[str, Any]:
    """Special tokens and the length; `tokenizer_config.json` has precedence over `special_tokens_map.json`."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: not an object")
        settings |= content
    return settings


def _token_content(value: Any) -> str:
    """A token's text; files hold either the text or an object with a key `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CheckpointError(f"special token {value!r} is neither a text nor an object with one")
    return text
