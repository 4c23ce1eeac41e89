"""Options of a command, one for each setting of a training configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, get_type_hints

import typer

from denoised.command_line.options import environment_variable
from denoised.model.training.learning_config import LearningConfig
from denoised.model.training.settings import settings


def with_setting_options(
    config_type: type[LearningConfig], from_preset: Collection[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each setting of a configuration; its `given` receives those that are set.

    from_preset: the settings whose default is the preset's.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in settings(config_type)}
            command(**arguments, given={name: value for name, value in values.items() if value is not None})

        parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [parameter for parameter in parameters if parameter.name != "given"]
        # typer reads the options from the signature.
        signature = inspect.Signature([*own, *_setting_parameters(config_type, from_preset)])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {}
        return wrapper

    return decorate


def _setting_parameters(config_type: type[LearningConfig], from_preset: Collection[str]) -> list[inspect.Parameter]:
    """One keyword parameter for each setting; None means that the option is not given."""
    types = get_type_hints(config_type)
    parameters = []
    for name, setting in settings(config_type).items():
        flag = "--" + (setting.flag or name.replace("_", "-"))
        if types[name] is bool:
            flag += flag.replace("--", "/--no-", 1)
        shown = "the preset's" if name in from_preset else _default_of(name, config_type)
        help = f"{setting.help}: {', '.join(setting.choices)}" if setting.choices else setting.help
        default = typer.Option(None, flag, envvar=environment_variable(flag), help=f"{help} [{shown}]")
        annotation = types[name] | None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return parameters


def _default_of(name: str, config_type: type[LearningConfig]) -> str:
    """The default of a setting as the help text shows it."""
    default = getattr(config_type, name)
    if default is None or isinstance(default, bool):
        return "on" if default else "off"
    return str(default)
