"""The words for a picture, and what is left out of them in training."""

from __future__ import annotations

from collections import Counter

import torch

from denoised.model.training.emoji.captions import (
    CaptionDropout,
    caption_corpus,
    draw_caption,
    full_caption,
    write_caption,
)
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiPictures

NOTHING_LEFT_OUT = CaptionDropout(everything=0, style=0, background=0, label=0)


def test_a_caption_names_object_style_and_background(pictures: EmojiPictures) -> None:
    assert write_caption("goat", "fluent", "teal") == "goat, fluent style, on a teal background"
    assert write_caption("goat", None, "orange") == "goat, on a orange background"
    assert write_caption("goat", "blob", None) == "goat, blob style"
    assert write_caption("goat", None, None) == "goat"
    drawing = 2  # of the goat, in the third style
    assert full_caption(pictures, 12 * drawing + COLOR_NAMES.index("teal")) == (
        "goat, fluent style, on a teal background"
    )


def test_nothing_is_left_out_without_dropout(pictures: EmojiPictures) -> None:
    generator = torch.Generator().manual_seed(0)
    for combination in range(pictures.combinations):
        expected = full_caption(pictures, combination)
        assert draw_caption(pictures, combination, NOTHING_LEFT_OUT, generator) == expected


def test_each_part_is_left_out_as_often_as_asked(pictures: EmojiPictures) -> None:
    generator = torch.Generator().manual_seed(0)
    dropout = CaptionDropout(everything=0.1, style=0.2, background=0.3, label=0.4)
    captions = [draw_caption(pictures, 0, dropout, generator) for _ in range(4000)]
    counts = Counter(
        {
            "everything": sum(not caption for caption in captions),
            "style": sum(bool(caption) and "style" not in caption for caption in captions),
            "background": sum(bool(caption) and "background" not in caption for caption in captions),
            "label": sum(bool(caption) and "goat" not in caption for caption in captions),
        }
    )
    for part, chance in {"everything": 0.1, "style": 0.18, "background": 0.27, "label": 0.36}.items():
        assert abs(counts[part] / 4000 - chance) < 0.03, part  # 4 standard deviations of the largest


def test_tags_stand_in_place_of_the_label(pictures: EmojiPictures) -> None:
    generator = torch.Generator().manual_seed(0)
    only_tags = CaptionDropout(everything=0, style=1, background=1, label=1)
    captions = {draw_caption(pictures, 0, only_tags, generator) for _ in range(200)}
    assert all(set(caption.split(", ")) <= {"animal", "farm", "milk"} for caption in captions)
    assert {len(caption.split(", ")) for caption in captions} == {1, 2, 3}
    santa = 2 * 5 * 12  # has no tags
    assert draw_caption(pictures, santa, only_tags, generator) == "santa claus"


def test_the_number_of_draws_does_not_depend_on_what_is_left_out(pictures: EmojiPictures) -> None:
    ends = []
    for dropout in (CaptionDropout(everything=1), NOTHING_LEFT_OUT):
        generator = torch.Generator().manual_seed(0)
        draw_caption(pictures, 0, dropout, generator)
        ends.append(torch.rand((), generator=generator))
    assert ends[0] == ends[1]


def test_the_corpus_holds_every_word_of_a_caption(pictures: EmojiPictures) -> None:
    words = {word.strip(",") for text in caption_corpus(pictures) for word in text.split()}
    expected = {word.strip(",") for k in range(pictures.combinations) for word in full_caption(pictures, k).split()}
    assert expected | {"cheese", "love"} <= words
