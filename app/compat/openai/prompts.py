"""A prompt in plain words to the class it names: "a sneaker, please" → sneaker.

A name counts wherever it stands as whole words, in any case, singular or plural, however it is joined (t-shirt,
T shirt, tshirt); what belongs to a longer name does not ("t-shirt" says nothing of shirts). Nothing is guessed: a
prompt that names no class or several is refused with the list of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from denoised.app.admission.validation import listed
from denoised.app.http.errors import InvalidRequest, shown
from denoised.model.serving.card import ModelCard

_WORD = re.compile(r"[^\W_]+")
_NAMES = re.compile(r"[/,;|]")  # between the names that one label may have, as in "T-shirt/top"
_INDEX = re.compile(r"\s*[0-9]{1,9}\s*")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {name: str(k) for k, name in enumerate(_DIGITS)}
SHORTEST_PLURAL = 4  # letters


@dataclass(frozen=True)
class Mention:
    """A label's name in a prompt, in words from the first to before the last."""

    label: int
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first


def label_of(prompt: str, card: ModelCard) -> int | None:
    """The class that a prompt names; a blank one names none, which is what unconditional models are asked with.

    Raises:
        InvalidRequest: when it names none of the model's classes, or several.
    """
    if not prompt.strip():
        if not card.unconditional:
            raise _refused("is blank, but", card, "was trained with labels alone")
        return None
    if not card.labels:
        raise _refused(f"{shown(prompt)} was given, but", card, "knows no labels (allowed: a blank prompt)")
    named = card.class_index(prompt)
    found = [named] if named is not None else mentioned(prompt, card.labels)
    if not found and _INDEX.fullmatch(prompt):
        index = card.class_index(int(prompt))
        found = [] if index is None else [index]
    if len(found) == 1:
        return found[0]
    how = f"names several classes ({listed([card.labels[k] for k in found])})" if found else "names no class"
    raise _refused(f"{shown(prompt)} {how}:", card, "takes one")


def mentioned(prompt: str, labels: Sequence[str]) -> list[int]:
    """The labels that a prompt names, by index."""
    said = _words(prompt)
    places: dict[str, list[int]] = {}
    for place, word in enumerate(said):
        for form in _forms(word):
            places.setdefault(form, []).append(place)
    mentions = [mention for k, label in enumerate(labels) for mention in _mentions(k, label, said, places)]
    longest = [0] * len(said)
    for mention in mentions:
        for place in range(mention.first, mention.last):
            longest[place] = max(longest[place], mention.length)
    whole = [mention for mention in mentions if min(longest[mention.first : mention.last]) <= mention.length]
    return sorted({mention.label for mention in whole})


def _mentions(label: int, text: str, said: Sequence[str], places: dict[str, list[int]]) -> Iterator[Mention]:
    for name in _names(text):
        there = [[places.get(form, []) for form in _forms(word)] for word in name]
        rarest = min(range(len(name)), key=lambda k: sum(map(len, there[k])))
        for first in {place - rarest for found in there[rarest] for place in found}:
            part = said[max(0, first) : first + len(name)]
            if len(part) == len(name) and all(map(_alike, name, part)):
                yield Mention(label, first, first + len(name))


def _names(label: str) -> set[tuple[str, ...]]:
    """The names that a label has, each as its words and as one word."""
    apart = {tuple(_words(name)) for name in _NAMES.split(label)} | {tuple(_words(label))}
    return {name for name in apart | {("".join(name),) for name in apart} if name and name[0]}


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _alike(one: str, other: str) -> bool:
    return not _forms(one).isdisjoint(_forms(other))


def _forms(word: str) -> set[str]:
    """A word, and the words that it may be the plural of (English); numbers as digits."""
    forms = {word}
    if len(word) >= SHORTEST_PLURAL and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        for plural, singulars in (("es", [""]), ("ies", ["y"]), ("ves", ["f", "fe"])):
            if word.endswith(plural):
                forms |= {word.removesuffix(plural) + singular for singular in singulars}
    return {NUMBERS.get(form, form) for form in forms}


def _refused(cause: str, card: ModelCard, what: str) -> InvalidRequest:
    labels = f"; its labels: {listed(card.labels)}" if card.labels else ""
    return InvalidRequest([("prompt", f"{cause} {card.name} {what}{labels}")])
