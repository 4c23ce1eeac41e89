"""Find the drawings of each emoji in a folder with the npm packages of `model.training.emoji.styles`.

`npm install` puts the packages into `node_modules`; a folder that holds `@iconify-json` and `emojibase-data` itself
is read too. Two packages have no table of code points: their drawings are found by the names of the other packages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoised.model.errors import DataError
from denoised.model.training.emoji.styles import LABELS_PACKAGE, PACKAGES, STYLES

HOW_TO_GET = f"npm install --prefix FOLDER {' '.join(PACKAGES)}"
MIN_STYLES = 4  # an object needs drawings in as many styles
# Groups of emojibase that are not pictures of objects: component (skin tones, hair), symbols (keycaps too), flags.
LEFT_OUT_GROUPS = (None, 2, 8, 9)
VARIATION_SELECTOR = "fe0f"  # asks for the colored form of a character; packages differ in whether they write it


@dataclass(frozen=True)
class Emoji:
    """One object and its drawings.

    Attributes:
        code: its code points in hexadecimal, joined by "-", without variation selectors.
        label: its name.
        tags: other words for it.
        drawings: SVG documents by style.
    """

    code: str
    label: str
    tags: tuple[str, ...]
    drawings: Mapping[str, str]


@dataclass(frozen=True)
class IconSet:
    """One package of icons.

    Attributes:
        icons: bodies and sizes by name.
        aliases: by name: a parent, and how it is transformed.
        names: icon names by code points.
        width, height: of icons that state none.
    """

    icons: Mapping[str, Any]
    aliases: Mapping[str, Any]
    names: Mapping[str, str]
    width: int
    height: int

    @classmethod
    def read(cls, folder: Path) -> IconSet:
        """Read a package's `icons.json` and `chars.json`.

        Raises:
            DataError: if a file is missing or not of this format.
        """
        content, names = _read_json(folder / "icons.json"), {}
        if (folder / "chars.json").exists():
            names = {_normalize(code): name for code, name in _read_json(folder / "chars.json").items()}
        try:
            size = int(content.get("width", 16)), int(content.get("height", 16))
            return cls(content["icons"], content.get("aliases", {}), names, *size)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / 'icons.json'}: not a set of icons ({error!r})") from error

    def draw(self, names: Iterable[str]) -> str | None:
        """The SVG document of the first of these names that the set has; None if it has none of them.

        A mirrored alias stands for another object drawn from this one; it is left out.
        """
        for name in names:
            alias = self.aliases.get(name, {"parent": name})
            if alias.keys() == {"parent"} and alias["parent"] in self.icons:
                icon = self.icons[alias["parent"]]
                return _svg(icon["body"], icon.get("width", self.width), icon.get("height", self.height))
        return None


def read_emoji(folder: Path) -> list[Emoji]:
    """The objects that have drawings in at least `MIN_STYLES` styles, in emojibase's order.

    Raises:
        DataError: if a package is missing or broken.
    """
    root = folder / "node_modules" if (folder / "node_modules").is_dir() else folder
    missing = [package for package in PACKAGES if not (root / package).is_dir()]
    if missing:
        raise DataError(f"{folder} lacks the package {missing[0]}: {HOW_TO_GET}")
    sets = {style.name: IconSet.read(root / style.package) for style in STYLES}
    entries = _read_json(root / LABELS_PACKAGE / "en" / "data.json")
    objects = [entry for entry in entries if entry.get("group") not in LEFT_OUT_GROUPS]
    # The order within emojibase-data is by code point; `order` is that of keyboards.
    found = (_find_drawings(entry, sets) for entry in sorted(objects, key=lambda entry: int(entry["order"])))
    emoji = [each for each in found if len(each.drawings) >= MIN_STYLES]
    if not emoji:
        raise DataError(f"{folder}: no emoji has drawings in {MIN_STYLES} styles: {HOW_TO_GET}")
    return emoji


def _find_drawings(entry: Mapping[str, Any], sets: Mapping[str, IconSet]) -> Emoji:
    code = _normalize(entry["hexcode"])
    shared = dict.fromkeys(each.names[code] for each in sets.values() if code in each.names)
    drawings = {}
    for style, icons in sets.items():
        own = [icons.names[code]] if code in icons.names else []
        # A set with a table of code points is not searched by name: two objects may have similar names.
        svg = icons.draw(own if icons.names else (*shared, _slug(entry["label"])))
        if svg is not None:
            drawings[style] = svg
    return Emoji(code, entry["label"].lower(), tuple(tag.lower() for tag in entry.get("tags", ())), drawings)


def _svg(body: str, width: int, height: int) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'
    )


def _normalize(code: str) -> str:
    """A sequence of code points in lower case and without variation selectors."""
    return "-".join(point for point in code.lower().split("-") if point != VARIATION_SELECTOR)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
