"""Which drawings are found in the packages, and what is wrong with packages that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from denoised.model.errors import DataError
from denoised.model.training.emoji.icon_packages import IconSet, read_emoji
from denoised.model.training.emoji.styles import PACKAGES, STYLE_NAMES, STYLES, credit_lines


def test_objects_in_four_styles_are_read_without_flags_symbols_and_skin_tones(packages: Path) -> None:
    emoji = read_emoji(packages)
    assert [each.label for each in emoji] == ["goat", "red heart", "santa claus", "bell", "pizza"]
    assert [each.code for each in emoji][:2] == ["1f410", "2764"]
    assert emoji[0].tags == ("animal", "farm", "milk")
    assert all(tuple(each.drawings) == STYLE_NAMES for each in emoji)


def test_a_set_without_code_points_is_searched_by_the_names_of_the_others(packages: Path) -> None:
    """Two sets have no `chars.json`; "santa claus" is named "father-christmas" in all of them."""
    santa = read_emoji(packages)[2]
    assert set(santa.drawings) == set(STYLE_NAMES)


def test_the_packages_may_be_at_the_top_of_the_folder(packages: Path) -> None:
    assert len(read_emoji(packages / "node_modules")) == 5


def test_an_alias_is_followed_unless_it_transforms_the_drawing(tmp_path: Path) -> None:
    aliases = {"ram": {"parent": "goat"}, "taog": {"parent": "goat", "hFlip": True}, "lost": {"parent": "nothing"}}
    content = {"icons": {"goat": {"body": "<g/>", "width": 20}}, "aliases": aliases, "width": 32, "height": 30}
    (tmp_path / "icons.json").write_text(json.dumps(content))
    icons = IconSet.read(tmp_path)
    drawing = icons.draw(["ram"])
    assert drawing is not None
    assert 'viewBox="0 0 20 30"' in drawing
    assert icons.draw(["taog", "lost", "unknown"]) is None
    assert icons.draw(["taog", "goat"]) == drawing


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks the package @iconify-json/noto: npm install .* emojibase-data$"):
        read_emoji(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"prefix": "noto"}'])
def test_a_broken_set_is_named(with_package: Callable[..., Path], content: str) -> None:
    with pytest.raises(DataError, match=r"noto/icons\.json"):
        read_emoji(with_package("@iconify-json/noto", "icons.json", content))


def test_packages_without_common_objects_are_refused(with_package: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no emoji has drawings in 4 styles"):
        read_emoji(with_package("emojibase-data", "en/data.json", "[]"))


def test_every_package_is_credited_with_its_license() -> None:
    lines = credit_lines()
    assert len(lines) == len(PACKAGES)
    assert [style.license for style in STYLES] == ["Apache-2.0", "Apache-2.0", "MIT", "MIT", "CC-BY-4.0"]
    for line, name in zip(lines, [*(style.license for style in STYLES), "MIT"], strict=True):
        assert name in line


def test_the_notice_holds_the_same_credits(repository: Path) -> None:
    assert set(credit_lines()) <= set((repository / "NOTICE").read_text(encoding="utf-8").splitlines())
