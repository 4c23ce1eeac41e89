"""The `numerics` of a picture: what its bytes depend on besides its request."""

from __future__ import annotations

PICTURE_FORMAT = 2  # increase it when the files of old requests change although their pixels do not
_MODEL = "model-"


def with_format(computation: str, digest: str = "") -> str:
    """The `numerics` of a picture: how its pixels are computed, by which model, and how its file is written.

    digest: of the model, see `ModelCard`; empty if it has none.
    """
    model = f"/{_MODEL}{digest}" if digest else ""
    return f"{computation}{model}/format-{PICTURE_FORMAT}"


def digest_in(numerics: str) -> str | None:
    """The digest of the model that `numerics` names; None in pictures of earlier versions, which name none."""
    named = [part.removeprefix(_MODEL) for part in numerics.split("/") if part.startswith(_MODEL)]
    return named[-1] if named else None


def computation(numerics: str) -> str:
    """The part of `numerics` that says how pixels are computed, whatever the model and the file format."""
    return numerics.partition("/format-")[0].partition(f"/{_MODEL}")[0]
