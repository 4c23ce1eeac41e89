"""How prompts are written: which guides a card may hold, and the prompts that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, read_card_file
from denoised.model.checkpoints.text_to_image.prompt_guide import PromptGuide
from denoised.model.errors import CheckpointError
from denoised.model.training.emoji.captions import write_caption
from denoised.model.training.text_to_image.text_outputs import GUIDE

TEMPLATE = "{subject}, {style} style"
STYLES = {"style": ["flat", "noto"]}


def test_the_guide_of_the_emoji_model_writes_the_captions_of_its_training() -> None:
    for style in (None, *GUIDE.parts["style"]):
        for color in (None, *GUIDE.parts["background"]):
            chosen = {"style": style or "", "background": color or ""}
            assert GUIDE.prompt("goat", **chosen) == write_caption("goat", style, color)
    assert GUIDE.examples[0] == "goat, fluent style, on a teal background"
    assert GUIDE.prompt("", style="flat") == "flat style"


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ({"template": "no placeholder"}, "without one placeholder"),
        ({"template": "{subject} {style}", "parts": STYLES}, "without one placeholder"),
        ({"template": "{subject}, ,{style}", "parts": STYLES}, "without one placeholder"),
        ({"template": "{subject}"}, None),
        ({"parts": STYLES}, "expected: ['style', 'subject']"),
        ({"template": "{subject}, {size}", "parts": STYLES}, "['size', 'subject']"),
        ({"template": "{style}", "parts": STYLES}, "expected: ['style', 'subject']"),
        ({"template": TEMPLATE, "parts": {"style": []}}, "at least 1"),
        ({"template": TEMPLATE, "parts": {"style": ["a, b"]}}, "pattern"),
        ({"template": TEMPLATE, "parts": {"style": ["a{b"]}}, "pattern"),
        ({"template": TEMPLATE, "parts": {"style": ["x" * 41]}}, "40"),
        ({"template": TEMPLATE, "parts": {"style": ["x"] * 41}}, "40"),
        ({"template": TEMPLATE, "parts": {"Style ": ["x"]}}, "pattern"),
        ({"examples": ["x" * 201]}, "200"),
        ({"examples": ["x"] * 13}, "12"),
        ({"examples": ["two\nlines"]}, "pattern"),
        ({"other": 1}, "other"),
    ],
)
def test_a_guide_is_bounded_and_complete(guide: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert PromptGuide.model_validate(guide).prompt("a goat") == "a goat"
        return
    with pytest.raises(ValidationError) as refused:
        PromptGuide.model_validate(guide)
    assert words in str(refused.value)


def test_a_card_keeps_its_guide_and_names_a_wrong_one(tmp_path: Path) -> None:
    card = CardFile(prompt_guide=GUIDE)
    (tmp_path / CARD_FILE).write_text(card.model_dump_json())
    assert read_card_file(tmp_path).prompt_guide == GUIDE
    (tmp_path / CARD_FILE).write_text('{"prompt_guide": {"template": "x"}}')
    with pytest.raises(CheckpointError, match="prompt_guide"):
        read_card_file(tmp_path)
