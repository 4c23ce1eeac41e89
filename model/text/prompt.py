"""Emphasis in prompts, in the syntax of AUTOMATIC1111's web UI.

`(word)` multiplies the weight of its words by 1.1, `[word]` divides it by 1.1, `(word:1.3)` multiplies it by 1.3.
Brackets nest. `\\(`, `\\)`, `\\[`, `\\]` and `\\\\` are the characters themselves. A bracket that is never closed
extends to the end. A backslash before anything else disappears. `BREAK`, in capitals, starts a new sequence of tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1

# An escaped character, a weight with its closing bracket, a bracket, or text without any of them.
TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<bracket>[()\[\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class WeightedText:
    """A part of a prompt whose words have the same weight; 1 means no emphasis."""

    text: str
    weight: float


class _PromptReader:
    """The parts of a prompt as they are read, and the brackets that are open."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []  # None is a BREAK
        self.weights: list[float] = []
        # Where the bracket of each kind opened, as an index of the parts. The kinds close independently.
        self.opened: dict[str, list[int]] = {"(": [], "[": []}

    def read(self, token: re.Match[str]) -> None:
        """Apply one token of the syntax; a closing bracket without an opening one is text."""
        escaped, weight, bracket, text = token.group("escaped", "weight", "bracket", "text")
        if escaped is not None:
            self._append(escaped)
        elif text is not None:
            self._append_words(text)
        elif weight is not None:
            self._close("(", float(weight), token[0])
        elif bracket == ")":
            self._close("(", ROUND_FACTOR, bracket)
        elif bracket == "]":
            self._close("[", SQUARE_FACTOR, bracket)
        else:
            self.opened[bracket].append(len(self.texts))

    def close_all(self) -> None:
        """Extend the brackets that are open to the end of the prompt."""
        for bracket, factor in (("(", ROUND_FACTOR), ("[", SQUARE_FACTOR)):
            for start in self.opened[bracket]:
                self._multiply(start, factor)

    def _close(self, bracket: str, factor: float, text: str) -> None:
        if self.opened[bracket]:
            self._multiply(self.opened[bracket].pop(), factor)
        else:
            self._append(text)

    def _append_words(self, text: str) -> None:
        first, *others = BREAK.split(text)
        self._append(first)
        for words in others:
            self._append(None)
            self._append(words)

    def _append(self, text: str | None) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def _multiply(self, start: int, factor: float) -> None:
        for index in range(start, len(self.weights)):
            self.weights[index] *= factor


def parse_emphasis(prompt: str) -> list[list[WeightedText]]:
    """The sequences of a prompt, at least one, each as its parts with their weights.

    Neighbours in a sequence differ in weight; an empty sequence has no parts.
    """
    reader = _PromptReader()
    for token in TOKEN.finditer(prompt):
        reader.read(token)
    reader.close_all()
    sequences: list[list[WeightedText]] = [[]]
    for text, weight in zip(reader.texts, reader.weights, strict=True):
        parts = sequences[-1]
        if text is None:
            sequences.append([])
        elif parts and parts[-1].weight == weight:
            parts[-1] = WeightedText(parts[-1].text + text, weight)
        elif text:
            parts.append(WeightedText(text, weight))
    return sequences
