"""CLIP's tokenizer: text → token ids, by byte-pair encoding (Radford et al. 2021, arXiv:2103.00020, section 2.4).

A folder holds either `tokenizer.json` or `vocab.json` and `merges.txt`; `tokenizer_config.json` or
`special_tokens_map.json` name the special tokens. The ids equal those of transformers' `CLIPTokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from denoised.model.bounded_files import MAX_TOKENIZER_BYTES, read_bounded, read_json
from denoised.model.errors import CheckpointError, abbreviate, shorten
from denoised.model.text.tokenizer_checks import SPACES, WORDS, check_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 200_000  # of a vocabulary, and merges; CLIP has 49,408
MAX_LENGTH = 77  # of all published CLIP encoders, start and end token included


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
            CheckpointError: if files are missing, too large, not JSON or not a tokenizer's, or special tokens are
                unknown.
        """
        settings = _read_settings(folder)
        names = {key: _token_content(folder, settings.get(key, token)) for key, token in DEFAULT_TOKENS.items()}
        tokenizer = _load_tokenizer(folder, names)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = {}
        for key, name in names.items():
            number = tokenizer.token_to_id(name)
            if number is None:
                raise CheckpointError(f"{folder}: {key} = {abbreviate(name)} is not in the vocabulary")
            ids[key] = number
        length = settings.get("model_max_length", MAX_LENGTH)
        if type(length) is not int or not 3 <= length <= 10_000:
            raise CheckpointError(
                f"{folder}: model_max_length = {abbreviate(length)} is not a whole number from 3 to 10000"
            )
        return cls(tokenizer, SpecialTokens(ids["bos_token"], ids["eos_token"], ids["pad_token"]), length)

    @property
    def capacity(self) -> int:
        """Token ids of a text in one sequence, between the start and the end token."""
        return self.length - 2

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, special tokens included: one more than the highest."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

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
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Lowercase()]
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
    if whole.exists():
        text = _read_text(whole)
        check_tokenizer(whole, text)
        with _refused(folder):
            return Tokenizer.from_str(text)
    if vocabulary.exists() and merges.exists():
        ids, pairs = _read_vocabulary(vocabulary), _read_merges(merges)
        with _refused(folder):
            tokenizer = build_clip_tokenizer(ids, pairs, names["unk_token"])
            tokenizer.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names.values())])
            return tokenizer
    raise CheckpointError(f"{folder}: there is neither tokenizer.json nor vocab.json with merges.txt")


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """What `tokenizers` says about files that it does not understand, as a CheckpointError. It raises Exception."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{folder}: not a tokenizer: {shorten(str(error))}") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    """`vocab.json`: a token → its id."""
    ids = read_json(path, MAX_TOKENIZER_BYTES)
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise CheckpointError(
                f"{path}: the id of {abbreviate(token)} is {abbreviate(number)}, not a whole number below {MAX_TOKENS}"
            )
    return ids


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of `merges.txt` in order; its first line is a version."""
    lines = _read_text(path).splitlines()[1:]
    if len(lines) > MAX_TOKENS:
        raise CheckpointError(f"{path}: has {len(lines)} merges (allowed: {MAX_TOKENS})")
    pairs = [line.partition(" ") for line in lines]
    return [(first, second) for first, space, second in pairs if space]


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TOKENIZER_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """Special tokens and the length; `tokenizer_config.json` has precedence over `special_tokens_map.json`."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            settings |= read_json(folder / name)
    return settings


def _token_content(folder: Path, value: Any) -> str:
    """A token's text; files hold either the text or an object with a key `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CheckpointError(f"{folder}: special token {abbreviate(value)} is neither a text nor an object with one")
    return text
