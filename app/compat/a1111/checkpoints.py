"""Models under the names that AUTOMATIC1111's web UI gives checkpoints: `name [hash]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value, join_names
from denoised.app.services import Services
from denoised.model.serving.card import ModelCard

HASH_DIGITS = 10
OPTION = "sd_model_checkpoint"


def title(card: ModelCard) -> str:
    """What the web UI's lists show: the name, and the beginning of the digest if there is one."""
    return f"{card.name} [{short_hash(card)}]" if card.digest else card.name


def short_hash(card: ModelCard) -> str | None:
    """The beginning of the model's digest."""
    return short_digest(card.digest)


def short_digest(digest: str | None) -> str | None:
    """A model's digest as long as the web UI's model hashes are; None if it is unknown."""
    return (digest or "")[:HASH_DIGITS] or None


def model_named(checkpoint: str, cards: Sequence[ModelCard]) -> str:
    """The name of the model that a title, a name or a hash means; any other text as it is."""
    for card in cards:
        if checkpoint in (card.name, title(card), short_hash(card), card.digest or None):
            return card.name
    return checkpoint


def selected_model(services: Services, owner: str, checkpoint: str | None) -> str | None:
    """The model of a request: the one that it names, else the one that the caller has chosen. Blocking.

    Returns None for the server's default.
    """
    if checkpoint:
        return model_named(checkpoint, services.catalog.cards())
    return services.store.model_choices.chosen(owner)


def choose_model(services: Services, owner: str, checkpoint: Any) -> None:
    """Make a model a caller's default. Blocking.

    Raises:
        InvalidRequest: when no live worker serves it.
    """
    cards = services.catalog.cards()
    name = model_named(checkpoint, cards) if isinstance(checkpoint, str) else ""
    if name not in [card.name for card in cards]:
        served = join_names([title(card) for card in cards])
        raise InvalidRequest([(OPTION, f"{format_value(checkpoint)} is not served (served: {served})")])
    services.store.model_choices.choose(owner, name)
