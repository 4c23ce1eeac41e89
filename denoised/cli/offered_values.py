"""The values that an option takes: listed where one is missing or unknown, and for shell completion.

Only the server knows those of `SERVED`: they depend on its models. Those of `DEFINED` are the same for every server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from denoised.cli.options import DEFAULT_URL
from denoised.command_line.console import can_redraw, print_error, stderr, stdout
from denoised.command_line.options import USAGE
from denoised.jobs.request import FIELDS

if TYPE_CHECKING:
    from rich.console import Console

    from denoised.client import Client, Model, ServiceError

SERVED = ("model", "sampler", "label")
DEFINED = {name: field.meanings for name, field in FIELDS.items() if field.meanings}
LISTED = (*SERVED, *DEFINED)
MISSING = ""  # the value of an option that was given without one
COMPLETION_SECONDS = 2.0  # that a shell waits for the server

Offered = list[tuple[str, str]]  # values, each with what it means


class ListingCommand(TyperCommand):
    """A command whose options in `LISTED` may be given without a value, which is then `MISSING`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        flags = {f"--{name}" for name in LISTED}
        completed: list[str] = []
        for argument, following in zip(args, [*args[1:], "--"], strict=True):
            completed.append(argument)
            if argument in flags and following.startswith("--"):
                completed.append(MISSING)
        return super().parse_args(ctx, completed)


def list_missing(client: Client, given: dict[str, Any], as_json: bool) -> None:
    """If an option has no value: list those that it takes on stdout, and exit as after any wrong usage.

    given: the values of the options.
    as_json: stdout is for JSON, so the list goes to stderr.
    """
    for name in LISTED:
        if given.get(name) == MISSING:
            models = client.models() if name in SERVED else []
            offered, whose = offered_values(name, models, given.get("model"))
            needs = f"a value, one of those of {whose}" if offered else f"a value, but {whose} has no {name}s"
            print_error("generate", f"--{name} needs {needs} (see denoised generate --help)")
            _print(stderr() if as_json else stdout(), name, offered)
            raise typer.Exit(USAGE)


def list_unknown(error: ServiceError, client: Client, given: dict[str, Any]) -> None:
    """If the server rejected a value of a listed option: print why, on a terminal also what it offers, and exit."""
    names = [name for name, _ in getattr(error, "errors", ()) if name in LISTED]
    if names:
        print_error("generate", error)
        if can_redraw(stderr()):
            _print(stderr(), names[0], offered_values(names[0], client.models(), given.get("model"))[0])
        raise typer.Exit(USAGE)


def _print(console: Console, name: str, offered: Offered) -> None:
    from denoised.cli.tables import print_rows  # slow to import, so only here

    print_rows(console, [name, ""], offered)


def offered_values(name: str, models: Sequence[Model], chosen: str | None) -> tuple[Offered, str]:
    """The values of an option, and the model that they are of.

    chosen: the model of the request; without one, the first that takes the option.
    """
    if name in DEFINED:
        return list(DEFINED[name].items()), "the request"
    if name == "model":
        return [(model.name, model.description) for model in models], "the server"
    model = next((each for each in models if chosen in (None, MISSING, each.name) and _takes(each, name)), None)
    if model is None:
        return [], chosen or "the server"
    if name == "label":
        return [(label, f"class {index}") for index, label in enumerate(model.labels)], model.name
    return [(each, model.sampler_descriptions.get(each, "")) for each in model.samplers], model.name


def _takes(model: Model, name: str) -> bool:
    return name != "label" or bool(model.labels)


def completion(name: str) -> Callable[[typer.Context, str], Iterator[tuple[str, str]]]:
    """The function that completes the values of an option in a shell: none of `SERVED` while no server answers."""

    def complete(ctx: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
        if name in DEFINED:
            yield from (pair for pair in DEFINED[name].items() if pair[0].startswith(incomplete))
            return
        from denoised.client import Client, ServiceError  # slow to import, so only here

        url, key, model = (ctx.params.get(each) for each in ("url", "key", "model"))
        try:
            with Client(url or DEFAULT_URL, key, timeout=COMPLETION_SECONDS, retry_for=0) as client:
                offered, _ = offered_values(name, client.models(), model)
        except (ServiceError, OSError, ValueError):
            return
        yield from (pair for pair in offered if pair[0].startswith(incomplete))

    return complete
