"""Class labels: how a request names a class, and which classes a network has.

Imports no torch: `model.serving.card`, which the HTTP front end uses, builds on it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile
from denoised.model.errors import CheckpointError

MAX_LABEL_LENGTH = 200  # characters, as in a request
_INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf"}  # Unicode's categories of spaces, controls and format characters
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Classes:
    """The classes of a network.

    Attributes:
        labels: K names; the index of a class is its position.
        unconditional: Whether the network also works without a label. If it has classes, the index K means "no label".
    """

    labels: list[str]
    unconditional: bool


def matching_classes(label: str, labels: Sequence[str]) -> list[int]:
    """The indices of the classes that a label may mean; it is ambiguous if there are several.

    An exact match wins. Next come names that are equal in Unicode's composed form (NFC) without surrounding spaces,
    then those that are equal apart from case.
    """
    forms: tuple[Callable[[str], str], ...] = (str, _normalized, _caseless)
    for form in forms:
        wanted = form(label)
        if found := [index for index, name in enumerate(labels) if form(name) == wanted]:
            return found
    return []


def class_index(label: str | int, labels: Sequence[str]) -> int | None:
    """The index of the class that a name or an index means; None if it means none or several."""
    if isinstance(label, int):
        return label if not isinstance(label, bool) and 0 <= label < len(labels) else None
    found = matching_classes(label, labels)
    return found[0] if len(found) == 1 else None


def class_index_of_text(text: str, labels: Sequence[str]) -> int | None:
    """`class_index` for text that a person types: digits that are not a class name are an index."""
    if matching_classes(text, labels):
        return class_index(text, labels)
    return class_index(int(text.strip()), labels) if _INDEX.fullmatch(text.strip()) else None


def check_labels(labels: Sequence[str]) -> None:
    """Check that every class has a name of its own.

    Raises:
        CheckpointError: for a label that is blank, has control characters or is too long to be requested, and for two
            that differ in spaces around them or in Unicode normalization alone, which nobody can tell apart.
    """
    positions = defaultdict(list)
    for index, label in enumerate(labels):
        categories = {unicodedata.category(character) for character in label}
        if categories <= _INVISIBLE:
            raise CheckpointError(f"labels[{index}] = {label!r} is blank")
        if "Cc" in categories:
            raise CheckpointError(f"labels[{index}] = {label!r} has control characters")
        if len(label) > MAX_LABEL_LENGTH:
            raise CheckpointError(f"labels[{index}] has {len(label)} characters (allowed: {MAX_LABEL_LENGTH})")
        positions[_normalized(label)].append(index)
    for label, indices in positions.items():
        if len(indices) > 1:
            listed = ", ".join(f"labels[{index}]" for index in indices)
            raise CheckpointError(f"{listed} are the same name {label!r} (as NFC, without surrounding spaces)")


def read_classes(folder: Path, card: CardFile, embeddings: int | None, embed_type: str | None) -> Classes:
    """The classes of a network, from its config and its card.

    embeddings, embed_type: `num_class_embeds` and `class_embed_type` of the config.

    Raises:
        CheckpointError: if the card contradicts the config, or its labels are ambiguous.
    """
    path, rows = folder / CARD_FILE, embeddings or 0
    try:
        check_labels(card.labels)
        if embed_type == "timestep":
            return _numeric_classes(card, rows)
        return _embedded_classes(card, rows) if rows else _no_classes(card)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _no_classes(card: CardFile) -> Classes:
    if names := len(card.labels):
        raise CheckpointError(f"labels: {names} names, but the U-Net has no classes (num_class_embeds is null)")
    if card.unconditional is False:
        raise CheckpointError("unconditional = false, but the U-Net has no classes (num_class_embeds is null)")
    return Classes([], unconditional=True)


def _numeric_classes(card: CardFile, rows: int) -> Classes:
    """A label is a number that the network embeds like a timestep, so no number means "no label"."""
    if card.unconditional:
        raise CheckpointError("unconditional = true, but with class_embed_type = 'timestep' every number is a class")
    if not card.labels and not rows:
        raise CheckpointError(
            "labels is missing: class_embed_type = 'timestep' takes numbers as labels, and only the card says which "
            "(labels[k] is the name of number k)"
        )
    return Classes(card.labels or _numbers(rows), unconditional=False)


def _embedded_classes(card: CardFile, rows: int) -> Classes:
    """A label is a row of a table; its last row means "no label" if the card says so."""
    unconditional = _has_null_class(card, rows)
    labels = card.labels or _numbers(rows - 1 if unconditional else rows)
    # Training without label dropout leaves the last row untrained: K labels, K + 1 rows, and no null class.
    spared = card.unconditional is False or _label_dropout(card) == 0
    allowed = {rows - 1} if unconditional else {rows, rows - 1} if spared else {rows}
    if len(labels) not in allowed:
        fits = f"{rows - 1}, since" if unconditional else f"{rows}, or {rows - 1} if"
        problem = f"{len(labels)} names, but num_class_embeds = {rows}"
        raise CheckpointError(f'labels: {problem} (allowed: {fits} the last one means "no label")')
    return Classes(labels, unconditional)


def _has_null_class(card: CardFile, rows: int) -> bool:
    """Whether the card says that the last row means "no label": by itself, by the training, or by naming the others."""
    if card.unconditional is not None:
        return card.unconditional
    if not card.labels:
        return bool(_label_dropout(card))
    if len(card.labels) == rows - 1:
        return _label_dropout(card) != 0
    return False


def _label_dropout(card: CardFile) -> float | None:
    """The fraction of images that `denoised train` showed without their label; None if it did not write the card."""
    value = card.training.get("label_dropout")
    return float(value) if isinstance(value, int | float) else None


def _numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def _normalized(label: str) -> str:
    return unicodedata.normalize("NFC", label).strip()


def _caseless(label: str) -> str:
    """The form for caseless matching (Unicode 16.0, section 3.13, D145), in NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", label).casefold()).strip()
