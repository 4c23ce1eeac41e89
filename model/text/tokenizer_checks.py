"""What a `tokenizer.json` may do with a text: the steps of CLIP's tokenizers, whose time and size grow with the text.

The library runs whatever the file says: a regular expression that backtracks for hours, replacements that double a text
forty times, or a random choice of merges, with which equal requests give different images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from denoised.model.bounded_files import unique_members
from denoised.model.errors import CheckpointError, abbreviate

# Special tokens, contractions, runs of letters, single digits, runs of anything else but spaces.
SPECIAL_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|"
PLAIN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS = SPECIAL_WORDS + PLAIN_WORDS
SPACES = r"\s+"
PATTERNS = (WORDS, PLAIN_WORDS, SPACES)
MAX_STEPS = 16  # of a text's way, those in sequences included
NORMALIZERS = ("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Replace")
PRE_TOKENIZERS = ("Sequence", "Split", "ByteLevel", "Whitespace", "WhitespaceSplit")
STEPS = {"normalizer": NORMALIZERS, "pre_tokenizer": PRE_TOKENIZERS}


def check_tokenizer(path: Path, text: str) -> None:
    """Check the content of a `tokenizer.json`, before the library reads it.

    Raises:
        CheckpointError: for a step that CLIP's tokenizers do not have, or content that is not a JSON object.
    """
    try:
        content = json.loads(text, object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error or type(error).__name__})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    model = content.get("model")
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if dropout:
        raise CheckpointError(f"{path}: dropout is {abbreviate(dropout)}: equal prompts would have different tokens")
    for name, allowed in STEPS.items():
        steps = list(_steps(content.get(name)))
        if len(steps) > MAX_STEPS:
            raise CheckpointError(f"{path}: {name} has {len(steps)} steps (allowed: {MAX_STEPS})")
        for step in steps:
            _check_step(path, name, step, allowed)


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """A step and those within it, which may be nested deeply."""
    waiting = [step]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            yield step
            within = (step.get(key) for key in ("normalizers", "pretokenizers"))
            waiting += [each for steps in within if isinstance(steps, list) for each in steps]


def _check_step(path: Path, name: str, step: dict[str, Any], allowed: tuple[str, ...]) -> None:
    kind = step.get("type")
    if kind not in allowed:
        raise CheckpointError(
            f"{path}: {name} is {abbreviate(kind)}, which CLIP has not (allowed: {', '.join(allowed)})"
        )
    pattern = step.get("pattern")
    if pattern is None:
        return
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if regex not in PATTERNS:
        raise CheckpointError(
            f"{path}: the pattern {abbreviate(pattern)} is none of CLIP's: vocab.json and merges.txt need no pattern"
        )
    if kind == "Replace" and step.get("content") not in ("", " "):
        raise CheckpointError(f"{path}: {name} replaces by {abbreviate(step.get('content'))} (allowed: a space)")
