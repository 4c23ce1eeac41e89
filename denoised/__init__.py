"""The Python client of a denoised server.

    from denoised import Client

    with Client() as client:
        for image in client.generate(label="sneaker", n=4, seed=7):
            image.save(...)

The client needs neither torch nor the server. Its modules are imported when one of these names is first used, because
importing any module of the server imports this package too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denoised.client import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name == "__all__" or not name.startswith("_"):
        client = import_module("denoised.client")
        if name == "__all__" or name in client.__all__:
            return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("denoised.client").__all__]
