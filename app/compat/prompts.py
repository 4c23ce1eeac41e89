"""Finds the class that a prompt names in plain words: "a sneaker, please" → sneaker.

A label's name matches wherever it occurs as whole words, in any case, singular or plural, and however it is joined
(t-shirt, T shirt, tshirt). Words that belong to a longer label do not match a shorter one ("t-shirt" does not name
"shirt"). Nothing is guessed: a prompt that names no class, or several, is refused with the list of labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.request import FIELDS
from denoised.model.serving.card import ModelCard

_WORD = re.compile(r"[^\W_]+")
_SEPARATOR = re.compile(r"[/,;|]")  # between the names of one label, as in "T-shirt/top"
MAX_LABEL_LENGTH = FIELDS["label"].max_length or 0
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {name: str(k) for k, name in enumerate(_DIGITS)}
_MARKS = re.compile(r"[^\w\s!-~]{31,}")  # combining marks are neither letters nor digits
MAX_MARKS = 30
MIN_PLURAL_LENGTH = 4  # letters


@dataclass(frozen=True)
class Mention:
    """A name of a label in a prompt.

    Attributes:
        label: the label's index.
        first, last: the index of its first word, and of the word after it.
    """

    label: int
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first


def label_of(prompt: str, card: ModelCard) -> int | None:
    """The index of the class that a prompt names; None for a blank prompt, which means unconditional.

    Raises:
        InvalidRequest: when the prompt names none of the model's classes, or several.
    """
    if not prompt.strip():
        if not card.unconditional:
            raise _refusal("is blank, but", card, "was trained only with labels")
        return None
    if not card.labels:
        raise _refusal(f"{format_value(prompt)} was given, but", card, "has no labels (allowed: a blank prompt)")
    exact = card.class_index_of_text(prompt) if len(prompt) <= MAX_LABEL_LENGTH else None
    found = [exact] if exact is not None else find_labels(prompt, card.labels)
    if len(found) == 1:
        return found[0]
    problem = f"names several classes ({join_names([card.labels[k] for k in found])})" if found else "names no class"
    raise _refusal(f"{format_value(prompt)} {problem}:", card, "requires one")


def find_labels(prompt: str, labels: Sequence[str]) -> list[int]:
    """The indices of the labels that a prompt names."""
    words = _words(prompt)
    positions: dict[str, list[int]] = {}  # of each word form
    for position, word in enumerate(words):
        for form in _forms(word):
            positions.setdefault(form, []).append(position)
    mentions = [mention for k, label in enumerate(labels) for mention in _mentions(k, label, words, positions)]
    longest = [0] * len(words)  # length of the longest mention that covers each word
    for mention in mentions:
        for position in range(mention.first, mention.last):
            longest[position] = max(longest[position], mention.length)
    whole = [mention for mention in mentions if min(longest[mention.first : mention.last]) <= mention.length]
    return sorted({mention.label for mention in whole})


def _mentions(label: int, text: str, words: Sequence[str], positions: dict[str, list[int]]) -> Iterator[Mention]:
    """Every mention of a label; only the positions of its rarest word are tried."""
    for name in _names(text):
        found = [[positions.get(form, []) for form in _forms(word)] for word in name]
        rarest = min(range(len(name)), key=lambda k: sum(map(len, found[k])))
        for first in {position - rarest for places in found[rarest] for position in places}:
            part = words[max(0, first) : first + len(name)]
            if len(part) == len(name) and all(map(_same_word, name, part)):
                yield Mention(label, first, first + len(name))


def _names(label: str) -> set[tuple[str, ...]]:
    """The names of a label, each as separate words and as one joined word."""
    separate = {tuple(_words(name)) for name in _SEPARATOR.split(label)} | {tuple(_words(label))}
    return {name for name in separate | {("".join(name),) for name in separate} if name and name[0]}


def _words(text: str) -> list[str]:
    # Normalization sorts each run of combining marks, in quadratic time. No script needs 30 (Unicode Annex 15, 13).
    text = _MARKS.sub(lambda run: run[0][:MAX_MARKS], text)
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _same_word(one: str, other: str) -> bool:
    return not _forms(one).isdisjoint(_forms(other))


def _forms(word: str) -> set[str]:
    """A word and its possible singulars (English); number words as digits."""
    forms = {word}
    if len(word) >= MIN_PLURAL_LENGTH and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        for plural, singulars in (("es", [""]), ("ies", ["y"]), ("ves", ["f", "fe"])):
            if word.endswith(plural):
                forms |= {word.removesuffix(plural) + singular for singular in singulars}
    return {NUMBERS.get(form, form) for form in forms}


def _refusal(cause: str, card: ModelCard, requirement: str) -> InvalidRequest:
    labels = f"; its labels: {join_names(card.labels)}" if card.labels else ""
    return InvalidRequest([("prompt", f"{cause} {card.name} {requirement}{labels}")])
