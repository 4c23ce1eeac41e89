"""`--model`: folders, and names on a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from denoised.model.errors import HubError
from denoised.model.hub.hub_name import HubName

if TYPE_CHECKING:
    from denoised.model.hub.pull import Puller


def resolve_models(texts: Sequence[str], make_puller: Callable[[], Puller], precision: str) -> list[Path]:
    """The folders that texts name. A folder that exists has precedence over a hub's model of the same name.

    A model that is in the cache is used as it is, without asking the hub.

    make_puller: Called for each name on a hub. Its imports take half a second, which folders alone do not need.

    Raises:
        HubError: for a name on a hub whose model cannot be downloaded.
    """
    return [_resolve(text, make_puller, precision) for text in texts]


def _resolve(text: str, make_puller: Callable[[], Puller], precision: str) -> Path:
    name = HubName.parse(text)
    if name is None or Path(text).exists():
        return Path(text)
    puller = make_puller()
    try:
        return puller.find_cached(name) or puller.pull(name, precision)
    except HubError as error:
        raise HubError(f"--model {text} is not a folder here; on the hub: {error}") from error
