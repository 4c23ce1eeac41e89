"""What operators order about models: `PUT /models/{name}`, `DELETE /models/{name}`, `POST /models/{name}/reload`."""

from __future__ import annotations

from dataclasses import dataclass

from denoised.client.resource import Resource


@dataclass(frozen=True)
class ModelOrder(Resource):
    """An order that the server has stored; `ModelState.generation` of a worker reaches `generation` when it follows it.

    removed: whether no worker serves the model.
    generation: how often something was ordered about it.
    """

    model: str
    removed: bool
    generation: int


@dataclass(frozen=True)
class ModelState(Resource):
    """A model on one worker.

    state: `loading`, `serving`, `draining` (its running jobs end before it is replaced or removed), `waiting` (for
        another worker), `unloading`, `unloaded` (until jobs wait for it) or `failed`.
    reason: why it is not served, or why the last change of its folder was refused; empty if nothing is wrong.
    digest: of the weights that are served.
    generation: of the last order that the worker has followed.
    """

    model: str
    state: str
    reason: str = ""
    digest: str = ""
    generation: int = 0
