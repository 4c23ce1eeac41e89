"""CLIP's tokenizer against transformers' `CLIPTokenizer`, over a small vocabulary made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from denoised.model.errors import CheckpointError
from denoised.model.text.tokenizer import END_TOKEN, TextTokenizer
from tests.text_pipelines import CORPUS, write_vocabulary

TEXTS = {
    "empty": "",
    "a space": " ",
    "plain": "a photo of an astronaut riding a horse on mars",
    "unknown words": "zxqv wykjh brr",
    "capitals": "A PHOTO of An AsTrOnAuT",
    "contractions": "it's a dog's life, we'll see, they've I'm you'd can't re've",
    "digits": "8k 1234567890 3.14 1,000 35mm",
    "punctuation": "a, b; c... (d) [e] {f} <g> !!! ?? -- ___ a--b f/1.8 @#$%^&*",
    "whitespace": "  a \t photo\n\n of\r\n  mars \u00a0 x \u3000 y  ",
    "accents": "très détaillé, naïve café, Ångström, São Tomé",
    "decomposed accents": "cafe\u0301 a\u030angstro\u0308m",
    "greek and cyrillic": "Ελληνικά ΣΊΣΥΦΟΣ, Русский Текст",
    "chinese, japanese, korean": "猫が窓に座っている 小猫 고양이",
    "arabic and hebrew": "قطة صغيرة חתול קטן",
    "emoji": "🐱 🔥🔥 👩‍👩‍👧‍👦 👍🏽 ❤️ 🇩🇪",
    "ligatures and full width": "ﬁne ﬂow Ｆｕｌｌ ① ½ ²",
    "zero width": "a\u200bb\u200dc\ufeffd",
    "control characters": "a\x00b\x07c\x1bd",
    "special tokens": "a <|endoftext|> b <|startoftext|> c<|endoftext|>d",
    "capital sharp s and dotted i": "STRASSE ẞ İstanbul ıŞ",
    "a long word": "supercalifragilisticexpialidocious" * 5,
    "long": ", ".join(CORPUS * 4),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder)
    return folder


@pytest.fixture
def write(vocabulary: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write(**settings)`: a tokenizer's folder with a vocabulary, merges and those settings."""

    def write(**settings: Any) -> Path:
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).write_bytes((vocabulary / name).read_bytes())
        if settings:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path

    return write


def ids_of_transformers(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return list(tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids)


@pytest.mark.parametrize("pad", [END_TOKEN, "!"])
def test_vocabulary_and_merges_give_the_ids_of_transformers(pad: str, write: Callable[..., Path]) -> None:
    folder = write(pad_token=pad, model_max_length=77)
    ours = TextTokenizer.from_folder(folder)
    theirs = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad)
    for name, text in TEXTS.items():
        assert ours.encode(text) == ids_of_transformers(theirs, text), name
        assert ours.token_ids(text) == theirs(text, add_special_tokens=False).input_ids, name
    assert {len(ours.encode(text)) for text in TEXTS.values()} == {77}
    assert len(ours.token_ids(CORPUS[0])) < len(CORPUS[0]) / 2, "the vocabulary hardly merges anything"


def test_a_folder_written_by_transformers_gives_its_ids(write: Callable[..., Path], tmp_path: Path) -> None:
    """`tokenizer.json` alone, as newer writers save it, with another pad token."""
    source = write()
    theirs = CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt"), pad_token="!", model_max_length=77)
    folder = tmp_path / "saved"
    theirs.save_pretrained(folder)
    assert not (folder / "merges.txt").exists()
    ours, again = TextTokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)
    assert ours.special.pad == 0
    for name, text in TEXTS.items():
        assert ours.encode(text) == ids_of_transformers(again, text) == ids_of_transformers(theirs, text), name


def test_both_formats_give_the_same_ids(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write()
    from_lists = TextTokenizer.from_folder(source)
    folder = tmp_path / "whole"
    folder.mkdir()
    from_lists._tokenizer.enable_truncation(5)  # settings of the file that do not apply here
    from_lists._tokenizer.enable_padding(length=9)
    from_lists._tokenizer.save(str(folder / "tokenizer.json"))
    from_lists = TextTokenizer.from_folder(source)
    whole = TextTokenizer.from_folder(folder)
    assert [whole.encode(text) for text in TEXTS.values()] == [from_lists.encode(text) for text in TEXTS.values()]


def test_a_sequence_is_framed_and_padded(write: Callable[..., Path]) -> None:
    tokenizer = TextTokenizer.from_folder(write(pad_token="!"))
    start, end = tokenizer.special.start, tokenizer.special.end
    assert (start, end) == (tokenizer.vocabulary_size - 2, tokenizer.vocabulary_size - 1)
    assert tokenizer.frame([7, 8]) == [start, 7, 8, end, *[0] * 73]
    assert tokenizer.encode("") == [start, end, *[0] * 75]
    assert tokenizer.capacity == 75


def test_tokens_may_be_objects_and_stand_in_the_other_file(write: Callable[..., Path]) -> None:
    """Older writers: an object for each token, and a file of special tokens."""
    folder = write(pad_token={"content": "!", "normalized": True, "__type": "AddedToken"})
    assert TextTokenizer.from_folder(folder).special.pad == 0
    (folder / "tokenizer_config.json").unlink()
    assert TextTokenizer.from_folder(folder).special.pad == TextTokenizer.from_folder(folder).special.end
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}), encoding="utf-8")
    assert TextTokenizer.from_folder(folder).special.pad == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_token": "<|none|>", "unk_token": "<|none|>"}, None),
        ({"model_max_length": 10**30}, "model_max_length = 1000000000000000000000000000000 is not a whole number"),
        ({"model_max_length": "77"}, "model_max_length = '77' is not a whole number from 3 to 10000"),
        ({"pad_token": 5}, "special token 5 is neither a text nor an object"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], message: str | None, write: Callable[..., Path]
) -> None:
    folder = write(**settings)
    if message is None:  # a special token that the vocabulary lacks is added to it, as in transformers
        assert TextTokenizer.from_folder(folder).special.pad == TextTokenizer.from_folder(folder).special.end + 1
        return
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer.from_folder(folder)


def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"there is neither tokenizer\.json nor vocab\.json with merges\.txt"):
        TextTokenizer.from_folder(empty)
    for content in ("{", '{"model": 3}', "[]"):
        (empty / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match="tokenizer"):
            TextTokenizer.from_folder(empty)
    folder = write()
    (folder / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        TextTokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        TextTokenizer.from_folder(folder)


def replaced(step: dict[str, Any], count: int = 1) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [step] * count}


EVIL: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern that backtracks": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        "is none of CLIP's: vocab.json and merges.txt need no pattern",
    ),
    "a pattern of cubic time": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": r"\s*\s*\s*x"}, "content": " "}},
        "is none of CLIP's",
    ),
    "a text that doubles": (
        {"normalizer": replaced({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, 12)},
        "is none of CLIP's",
    ),
    "spaces that grow": (
        {"normalizer": replaced({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " a " * 100}, 4)},
        "normalizer replaces by",
    ),
    "a thousand steps": ({"normalizer": replaced({"type": "NFC"}, 1000)}, "has 1001 steps"),
    "a step with a table": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "normalizer is 'Precompiled', which CLIP has not",
    ),
    "merges left out by chance": ({"dropout": 0.5}, "dropout is 0.5: equal prompts would have different tokens"),
}


@pytest.mark.parametrize(("changes", "message"), EVIL.values(), ids=EVIL.keys())
def test_a_tokenizer_does_no_more_than_clips(
    changes: dict[str, Any], message: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    """A file of a stranger's folder decides neither how long a prompt takes nor how large it becomes."""
    CLIPTokenizer.from_pretrained(write(model_max_length=77)).save_pretrained(tmp_path)
    TextTokenizer.from_folder(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["dropout"] = changes.get("dropout")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer.from_folder(tmp_path)


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "type": "WordLevel"}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="the key 'type' occurs twice"):
        TextTokenizer.from_folder(tmp_path)
