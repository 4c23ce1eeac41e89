"""`denoised models add | remove | reload NAME`: orders of operators, and how the workers follow them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, cast

from denoised.cli.console import OK, print_line
from denoised.client import Client
from denoised.client.errors import RequestRejected
from denoised.client.model_order import ModelOrder, ModelState
from denoised.command_line.console import FAILED, print_error, print_json

Order = Literal["add", "remove", "reload"]
ORDERS = ("add", "remove", "reload")
POLL_SECONDS = 0.5
SEEN_SECONDS = 15.0  # within which a worker must have seen a folder
UNKNOWN = 404


def order_of(words: list[str]) -> tuple[Order, list[str]] | None:
    """The order and the names, if these are the words of one."""
    return (cast(Order, words[0]), words[1:]) if len(words) > 1 and words[0] in ORDERS else None


def order_models(client: Client, order: Order, names: Iterable[str], folder: Path | None, as_json: bool) -> int:
    """Give an order for some models, and wait until the workers have followed it. Returns the exit code.

    folder: the models folder of the workers on this machine; `add` links folders into it.
    """
    codes = [_order(client, order, name, folder, as_json) for name in names]
    return max(codes, default=OK)


def _order(client: Client, order: Order, text: str, folder: Path | None, as_json: bool) -> int:
    path = Path(text)
    linked = order == "add" and path.is_dir() and len(path.parts) > 1
    name = _link(path, folder) if linked else text
    try:
        given = {"add": client.add_model, "remove": client.remove_model, "reload": client.reload_model}[order](name)
    except RequestRejected as error:
        if not linked or error.status != UNKNOWN:
            raise
        given = ModelOrder(name, removed=False, generation=0, raw={})  # the workers will find it
    found = _wait(client, given)
    failed = [f"{worker}: {state.state}, {state.reason}" for worker, state in found if state.reason]
    if as_json:
        shown = [{"worker": worker, **state.raw} for worker, state in found]
        print_json({"model": name, "removed": given.removed, "workers": shown})
    else:
        for line in failed:
            print_error("models", f"{name}: {line}")
        serving = sum(state.state == "serving" for _, state in found)
        print_line(f"{name} was removed" if given.removed else f"{name} is served by {serving} worker(s)")
    return FAILED if failed or (not found and not given.removed) else OK


def _link(path: Path, folder: Path | None) -> str:
    """Link a model folder into the models folder of the workers. Returns its name there."""
    if folder is None:
        raise RequestRejected(
            f"{path}: a folder is added through the workers' models folder: name it with --models-folder", 0
        )
    target = path.absolute()
    link = folder / target.name
    if link.exists() or link.is_symlink():
        raise RequestRejected(f"{link}: exists already; to load it again, run denoised models reload {link.name}", 0)
    link.symlink_to(target, target_is_directory=True)
    return link.name


def _wait(client: Client, order: ModelOrder) -> list[tuple[str, ModelState]]:
    """The states of the model on the workers that have it, when they have followed the order, or cannot."""
    end = time.monotonic() + SEEN_SECONDS
    while True:
        found = list(_states(client, order.model))
        if order.removed and not found:
            return []
        settled = all(_is_settled(state, order) for _, state in found)
        if not order.removed and settled and (found or time.monotonic() > end):
            return found
        time.sleep(POLL_SECONDS)


def _is_settled(state: ModelState, order: ModelOrder) -> bool:
    return state.generation >= order.generation and state.state in ("serving", "failed", "waiting", "unloaded")


def _states(client: Client, model: str) -> Iterator[tuple[str, ModelState]]:
    for worker in client.workers().workers:
        for state in worker.states:
            if state.model == model:
                yield worker.name, state
