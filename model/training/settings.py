"""Settings of a training run, declared as the fields of a dataclass: type, default, help text and limits.

Validation and the options of a command are derived from the declarations.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from denoised.model.errors import TrainingError


@dataclass(frozen=True)
class Setting:
    """What a field of a configuration accepts and how the command line offers it.

    help: the help text of the option.
    flag: the option's name if it is not the field's, without dashes.
    choices: the allowed words; empty if there is no such list.
    at_least, at_most: inclusive limits of a number; no limits apply if at_least is None.
    """

    help: str
    flag: str | None = None
    choices: Collection[str] = ()
    at_least: float | None = None
    at_most: float = math.inf


def setting(default: object, help: str, **details: Any) -> Any:
    """A field of a configuration that has an option; details: further fields of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **details)})


def settings(config_type: type) -> dict[str, Setting]:
    """The declared settings by field name; fields without one have no option and no limits."""
    return {each.name: each.metadata["setting"] for each in fields(config_type) if "setting" in each.metadata}


def validate_settings(config: Any) -> None:
    """Refuse a configuration with a value outside of its setting's choices or limits.

    Raises:
        TrainingError: names the setting, its value and the limit.
    """
    for name, declared in settings(type(config)).items():
        _validate_value(name, getattr(config, name), declared)


def unknown(name: str, value: object, choices: Collection[str]) -> str:
    """The message about a word that is not among the choices of a setting."""
    return f"{name} = {value!r} is not known (known: {', '.join(choices)})"


def _validate_value(name: str, value: Any, declared: Setting) -> None:
    if declared.choices and value not in declared.choices:
        raise TrainingError(unknown(name, value, declared.choices))
    low, high = declared.at_least, declared.at_most
    if low is None or value is None:
        return
    if not (math.isfinite(value) and low <= value <= high):
        limit = f"at least {low}" if math.isinf(high) else f"{low} … {high}"
        raise TrainingError(f"{name} = {value} is out of range ({limit})")
