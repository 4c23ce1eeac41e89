"""Finds the class that a prompt names in plain words: "a sneaker, please" → sneaker.

A label's name matches wherever it occurs as whole words, in any case, singular or plural, and however it is joined
(t-shirt, T shirt, tshirt). Words that belong to a longer label do not match a shorter one ("t-shirt" does not name
"shirt"). Nothing is guessed: a prompt that names no class, or several, is refused with the list of labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.request import FIELDS
from denoised.model.serving.card import ModelCard

_LETTER = re.compile(r"[^\W_]")
_OTHER = re.compile(r"[\W_]")
_SEPARATOR = re.compile(r"[/,;|]")  # between the names of one label, as in "T-shirt/top"
MAX_LABEL_LENGTH = FIELDS["label"].max_length or 0
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {name: str(k) for k, name in enumerate(_DIGITS)}
_MARKS = re.compile(r"[^\w\s!-~]{31,}")  # combining marks are neither letters nor digits
MAX_MARKS = 30
MIN_PLURAL_LENGTH = 4  # letters
MAX_EXPANSION = 18  # characters that NFKC makes of one at most
MAX_WORD_LENGTH = 4 * MAX_EXPANSION * MAX_LABEL_LENGTH


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
    requirement = "requires one, or a blank prompt" if card.unconditional else "requires one"
    raise _refusal(f"{format_value(prompt)} {problem}:", card, requirement)


def find_labels(prompt: str, labels: Sequence[str]) -> list[int]:
    """The indices of the labels that a prompt names, in time proportional to its length."""
    words = _words(prompt)
    positions: dict[str, list[int]] = {}  # of each word form
    for position, word in enumerate(words):
        for form in _forms(word):
            positions.setdefault(form, []).append(position)
    mentions: dict[int, list[tuple[int, int]]] = {}  # by their number of words: (label, position of the first word)
    for label, text in enumerate(labels):
        for name in _names(text):
            found = [(label, first) for first in _find_name(name, positions)]
            if found:
                mentions.setdefault(len(name), []).extend(found)
    return sorted(_labels_of_longest(mentions, len(words)))


def _find_name(name: Sequence[str], positions: Mapping[str, Sequence[int]]) -> list[int]:
    """Where a name starts in a prompt, by the positions of the prompt's word forms."""
    if any(positions.keys().isdisjoint(_forms(word)) for word in name):
        return []
    # Shift-And (Baeza-Yates & Gonnet 1992): bit k of a state says that the first k + 1 words of the name end here.
    masks: dict[int, int] = {}
    for word in set(name):
        mask = sum(1 << k for k, other in enumerate(name) if other == word)
        for form in _forms(word):
            for position in positions.get(form, ()):
                masks[position] = masks.get(position, 0) | mask
    starts, state, last, whole = [], 0, -2, 1 << (len(name) - 1)
    for position in sorted(masks):
        state = ((state << 1 if position == last + 1 else 0) | 1) & masks[position]
        if state & whole:
            starts.append(position - len(name) + 1)
        last = position
    return starts


def _labels_of_longest(mentions: Mapping[int, Sequence[tuple[int, int]]], words: int) -> set[int]:
    """The labels with a mention that longer mentions do not cover. words: their number in the prompt."""
    labels: set[int] = set()
    covered = [False] * words
    for length in sorted(mentions, reverse=True):
        before = [0, *accumulate(covered)]  # covered words before each position
        labels |= {label for label, first in mentions[length] if before[first + length] - before[first] < length}
        end = 0
        for first in sorted(first for _, first in mentions[length]):
            for position in range(max(first, end), first + length):
                covered[position] = True
            end = first + length
    return labels


def _names(label: str) -> set[tuple[str, ...]]:
    """The names of a label, each as separate words and as one joined word."""
    separate = {tuple(_words(name)) for name in _SEPARATOR.split(label)} | {tuple(_words(label))}
    return {name for name in separate | {("".join(name),) for name in separate} if name and name[0]}


def _words(text: str) -> list[str]:
    # Normalization sorts each run of combining marks, in quadratic time. No script needs 30 (Unicode Annex 15, 13).
    text = _MARKS.sub(lambda run: run[0][:MAX_MARKS], text)
    text = unicodedata.normalize("NFKC", text).casefold()
    return [word for word in _OTHER.sub(_in_words, text).split() if _LETTER.search(word)]


def _in_words(character: re.Match[str]) -> str:
    """What a character that is neither a letter nor a digit is in words.

    Combining marks belong to them: many scripts write vowels so (Devanagari, Thai). Format characters, such as joiners
    and soft hyphens, are invisible. Every other character separates words.
    """
    category = unicodedata.category(character[0])
    return character[0] if category.startswith("M") else "" if category == "Cf" else " "


@lru_cache(1024)
def _forms(word: str) -> frozenset[str]:
    """A word and its possible singulars (English); number words as digits. None of a word longer than any label."""
    if len(word) > MAX_WORD_LENGTH:
        return frozenset()
    forms = {word}
    if len(word) >= MIN_PLURAL_LENGTH and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        for plural, singulars in (("es", [""]), ("ies", ["y"]), ("ves", ["f", "fe"])):
            if word.endswith(plural):
                forms |= {word.removesuffix(plural) + singular for singular in singulars}
    return frozenset(NUMBERS.get(form, form) for form in forms)


def _refusal(cause: str, card: ModelCard, requirement: str) -> InvalidRequest:
    labels = f"; its labels: {join_names(card.labels)}" if card.labels else ""
    return InvalidRequest([("prompt", f"{cause} {card.name} {requirement}{labels}")])
