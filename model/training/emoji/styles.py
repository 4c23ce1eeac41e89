"""The icon packages that the emoji model is trained on: one for each style, with its author and license."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A style of drawing, and the npm package that holds its pictures.

    Attributes:
        name: the word for it in captions.
        package: the npm package.
        author: who drew the pictures.
        license: SPDX identifier of the pictures' license.
        source: where the drawings come from.
    """

    name: str
    package: str
    author: str
    license: str
    source: str


# Sets under a share-alike license (OpenMoji, EmojiOne) are left out on purpose.
STYLES: tuple[Style, ...] = (
    Style("noto", "@iconify-json/noto", "Google Inc", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    Style("blob", "@iconify-json/noto-v1", "Google Inc", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    Style(
        "fluent",
        "@iconify-json/fluent-emoji",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Style(
        "flat",
        "@iconify-json/fluent-emoji-flat",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Style(
        "twemoji",
        "@iconify-json/twemoji",
        "Twitter, Inc and other contributors",
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
    ),
)
STYLE_NAMES = tuple(style.name for style in STYLES)
LABELS_PACKAGE = "emojibase-data"  # English labels and tags; MIT, Miles Johnson
PACKAGES = (*(style.package for style in STYLES), LABELS_PACKAGE)


def credit_lines() -> list[str]:
    """One line of credit for each package, for a model card and NOTICE."""
    lines = [f"{style.package}: {style.author}, {style.license}, {style.source}" for style in STYLES]
    return [*lines, f"{LABELS_PACKAGE}: Miles Johnson, MIT, https://github.com/milesj/emojibase"]


def license_line() -> str:
    """The licenses of the drawings with their styles: "Apache-2.0 (noto, blob), MIT (fluent, flat), …"."""
    names: dict[str, list[str]] = {}
    for style in STYLES:
        names.setdefault(style.license, []).append(style.name)
    return ", ".join(f"{name} ({', '.join(styles)})" for name, styles in names.items())
