"""A small copy of the packages of drawings that the emoji model is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from denoised.model.training.emoji.emoji_pictures import EmojiPictures, render_pictures
from denoised.model.training.emoji.icon_packages import read_emoji
from denoised.model.training.emoji.styles import STYLES

# Label, code points, group and tags, as in emojibase.
OBJECTS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("goat", "1F410", 3, ("animal", "farm", "milk")),
    ("red heart", "2764", 0, ("love",)),
    ("Santa Claus", "1F385", 1, ()),
    ("bell", "1F514", 7, ("sound", "ring")),
    ("pizza", "1F355", 4, ("cheese", "slice", "food", "italian")),
    ("only in three styles", "1F9FF", 7, ()),
    ("keycap: 1", "0031-FE0F-20E3", 8, ()),
    ("flag: Chad", "1F1F9-1F1E9", 9, ()),
    ("light skin tone", "1F3FB", 2, ()),
)
HUES = {style.name: hue for style, hue in zip(STYLES, ("red", "lime", "blue", "yellow", "cyan"), strict=True)}
WITHOUT_CODES = ("blob", "fluent")  # these packages have no table of code points


def _slug(label: str) -> str:
    return label.lower().replace(": ", "-").replace(" ", "-")


def _draw(index: int, hue: str) -> str:
    return f'<circle cx="16" cy="16" r="{6 + index}" fill="{hue}"/>'


def _write_package(root: Path, package: str, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        path = root / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which `npm install` might have put packages with nine objects. Five of them can be drawn."""
    folder = tmp_path_factory.mktemp("packages")
    root = folder / "node_modules"
    for style in STYLES:
        icons = {
            _slug(label): {"body": _draw(index, HUES[style.name])}
            for index, (label, *_) in enumerate(OBJECTS)
            if not (label.startswith("only") and style.name in ("blob", "twemoji"))
        }
        # This one is found by another set's name for it: the label is no name of any set.
        icons["father-christmas"] = icons.pop("santa-claus")
        names = {"father-christmas" if label == "Santa Claus" else _slug(label): code for label, code, *_ in OBJECTS}
        codes = {code.lower().replace("-fe0f", ""): name for name, code in names.items()}
        files: dict[str, Any] = {"icons.json": {"icons": icons, "width": 32, "height": 32}}
        files["chars.json"] = {} if style.name in WITHOUT_CODES else codes
        _write_package(root, style.package, files)
    entries = [
        {"label": label, "hexcode": code, "group": group, "tags": list(tags), "order": index}
        for index, (label, code, group, tags) in enumerate(OBJECTS)
    ]
    _write_package(root, "emojibase-data", {"en/data.json": entries})
    return folder


@pytest.fixture(scope="session")
def pictures(packages: Path) -> EmojiPictures:
    """Five objects in five styles."""
    return render_pictures(read_emoji(packages))


@pytest.fixture
def with_package(packages: Path, tmp_path: Path) -> Callable[..., Path]:
    """`with_package(package, file, content)`: a copy of the packages with one file replaced."""

    def write(package: str, file: str, content: str) -> Path:
        for source in packages.rglob("*.json"):
            target = tmp_path / source.relative_to(packages)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        (tmp_path / "node_modules" / package / file).write_text(content, encoding="utf-8")
        return tmp_path

    return write
