"""Checks that the configs of networks share: unknown keys, bounds, types and supported values.

Every message names the key and the value. Lists of a JSON file become tuples, so that a config is immutable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate

# Bounds that no published network comes near: a config is checked before anything is allocated or built.
MAX_LEVELS = 12  # 2^11 divides no side over 2048
MAX_LAYERS = 16  # residual blocks of a level
MAX_COUNT = 16_384  # channels, groups and widths
MAX_ROWS = 100_000  # of tables: classes, timesteps
MAX_NUMBER = 1e9


@dataclass(frozen=True)
class ValueCheck:
    """A condition on the values of some keys.

    Attributes:
        keys: the keys that must meet the condition.
        problem: completes the sentence "key = value is …" for a value that fails.
        accepts: whether a value meets the condition.
    """

    keys: tuple[str, ...]
    problem: str
    accepts: Callable[[Any], bool]


def known_values(cls: type[Any], raw: Mapping[str, Any], ignored: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The values of a parsed `config.json` for the fields of a dataclass.

    cls: the config's dataclass.
    ignored: keys without a meaning for this network; keys that begin with an underscore are always ignored.

    Raises:
        CheckpointError: for a key that the dataclass does not have.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    values = {key: value for key, value in raw.items() if not key.startswith("_") and key not in ignored}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(
            f"config key {abbreviate(unknown[0])} is not understood (known: {', '.join(sorted(known))})"
        )
    return {key: to_tuples(value) for key, value in values.items()}


def check_values(config: Any, checks: Sequence[ValueCheck], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Check each key of a config by itself.

    supported: keys for which only some values are implemented, with those values. The values of keys that end in
        `block_types` are lists; each item is checked.

    Raises:
        CheckpointError: for the first value that fails, by name.
    """
    for check in checks:
        for key in check.keys:
            if not check.accepts(getattr(config, key)):
                raise CheckpointError(f"{key} = {abbreviate(to_lists(getattr(config, key)))} is {check.problem}")
    for key, values in supported.items():
        value = getattr(config, key)
        for item in value if key.endswith("block_types") else (value,):
            # True equals 1 in Python, but not in a config.
            if not any(item == each and type(item) is type(each) for each in values):
                listed = ", ".join(repr(each) for each in values)
                raise CheckpointError(f"{key} = {abbreviate(to_lists(item))} is not supported (supported: {listed})")


def to_tuples(value: Any) -> Any:
    """A value with its lists, nested ones too, as tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value


def to_lists(value: Any) -> Any:
    """A value with its tuples, nested ones too, as lists."""
    return list(map(to_lists, value)) if isinstance(value, (list, tuple)) else value


def is_integer(value: Any, minimum: int = 1, most: int = MAX_COUNT) -> bool:
    """Whether a value is an integer from `minimum` to `most`."""
    return type(value) is int and minimum <= value <= most


def is_optional_integer(value: Any) -> bool:
    """Whether a value is null or an integer from 1 to `MAX_COUNT`."""
    return value is None or is_integer(value)


def is_integers(value: Any) -> bool:
    """Whether a value is a list, not empty, of at most `MAX_LEVELS` integers from 1 to `MAX_COUNT`."""
    return isinstance(value, tuple) and 0 < len(value) <= MAX_LEVELS and all(map(is_integer, value))


def is_level_list(value: Any) -> bool:
    """Whether a value is a list of at most `MAX_LEVELS` items."""
    return isinstance(value, tuple) and len(value) <= MAX_LEVELS


def is_number(value: Any) -> bool:
    """Whether a value is a number of at most `MAX_NUMBER` in size; true and false are not, nor is NaN."""
    # `type`, not `isinstance`: True and False are ints in Python. NaN fails the comparison.
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def is_positive(value: Any) -> bool:
    """Whether a value is a number over 0."""
    return is_number(value) and value > 0


def is_boolean(value: Any) -> bool:
    """Whether a value is true or false."""
    return type(value) is bool
