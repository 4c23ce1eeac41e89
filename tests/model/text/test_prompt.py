"""The syntax of emphasis in prompts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.model.text.prompt import parse_emphasis

UP, DOWN = 1.1, 1 / 1.1
CASES: dict[str, list[tuple[str, float]]] = {
    "": [],
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", UP), (" word", 1)],
    "an ((important)) word": [("an ", 1), ("important", UP**2), (" word", 1)],
    "a [faint] word": [("a ", 1), ("faint", DOWN), (" word", 1)],
    "(word:1.2)": [("word", 1.2)],
    "(word:0)": [("word", 0)],
    "(word:-.5)": [("word", -0.5)],
    "(word:+2)": [("word", 2)],
    "(word: 1.5 )": [("word", 1.5)],
    "(two words:1.2) and (more:0.8)": [("two words", 1.2), (" and ", 1), ("more", 0.8)],
    "(a (b:1.5) c)": [("a ", UP), ("b", 1.5 * UP), (" c", UP)],
    "(a [b] c:2)": [("a ", 2), ("b", 2 * DOWN), (" c", 2)],
    "(unclosed": [("unclosed", UP)],
    "[unclosed (both": [("unclosed ", DOWN), ("both", 1)],
    "unopened)": [("unopened)", 1)],
    "unopened]": [("unopened]", 1)],
    "unopened:1.3)": [("unopened:1.3)", 1)],
    "(one)(two)": [("onetwo", UP)],
    r"\(literal\] \\ [x\]": [(r"(literal] " + "\\", 1), (" ", 1), ("x]", DOWN)],
    r"a\b": [("ab", 1)],
    "time 12:30, a: b": [("time 12:30, a: b", 1)],
    "(a:b)": [("a:b", UP)],
    "(a:1.2.3)": [("a:1.2.3", UP)],
    "[a:1.2)": [("a:1.2)", DOWN)],
    "()": [],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1),
        ("house", 1.3 * UP * UP),
        (" ", UP),
        ("on", 1),
        (" a ", UP),
        ("hill", 0.5 * UP),
        (", sun, ", UP),
        ("sky", UP**4),
        (".", UP),
    ],
}


@pytest.mark.parametrize("prompt", CASES)
def test_weights_of_a_prompt(prompt: str) -> None:
    (parts,) = parse_emphasis(prompt)
    expected: list[tuple[str, float]] = []
    for text, weight in CASES[prompt]:  # neighbours of equal weight are one part
        if expected and abs(expected[-1][1] - weight) < 1e-12:
            expected[-1] = (expected[-1][0] + text, weight)
        else:
            expected.append((text, weight))
    assert [part.text for part in parts] == [text for text, _ in expected]
    assert [part.weight for part in parts] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("(a BREAK b:1.5) c", [["a"], ["b", " c"]]),
        ("a BREAKFAST, a break", [["a BREAKFAST, a break"]]),
    ],
)
def test_break_starts_a_new_sequence(prompt: str, texts: list[list[str]]) -> None:
    assert [[part.text for part in parts] for parts in parse_emphasis(prompt)] == texts


def test_a_weight_spans_a_break() -> None:
    first, second = parse_emphasis("(a BREAK b:1.5) c")
    assert [part.weight for part in (*first, *second)] == [1.5, 1.5, 1]


@given(st.text(alphabet="ab ()[]:\\.1", max_size=40))
def test_any_text_is_a_prompt(prompt: str) -> None:
    """No bracket or number is an error, and no letter is lost."""
    (parts,) = parse_emphasis(prompt)
    letters = [character for part in parts for character in part.text if character in "ab"]
    assert letters == [character for character in prompt if character in "ab"]
    assert all(first.weight != second.weight for first, second in pairwise(parts))
